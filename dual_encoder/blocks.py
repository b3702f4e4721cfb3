"""Softmax cross entropy over blocks of scores on one device: its sums, and its gradient from them.

What `dual_encoder.blockwise` is made of. A score is q . d / t, for t the temperature. Scores of a block are
made, used and forgotten; what is summed up of them is, for each query, the log of the sum of exponentials
over the documents that count for it, and where the loss goes both ways the same for each document.

Letters: B queries, N documents, D width, P known positives of a query; I blocks of b queries, K blocks of n
documents.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from dual_encoder.candidates import Candidates


@struct.dataclass
class Queries:
    """Queries in blocks.

    Attributes:
      vectors: float32 [I, b, D], 0 for padding.
      labels: int32 [I, b], the column of the query's own document, -1 where it is not among those at hand.
      positives: int32 [I, b, P], see `Candidates`.
      real: bool [I, b], False for padding.
    """

    vectors: jax.Array
    labels: jax.Array
    positives: jax.Array
    real: jax.Array


@struct.dataclass
class Documents:
    """Documents in blocks: `vectors` float32 [K, n, D], and `rows` int32 [K, n], -1 for padding."""

    vectors: jax.Array
    rows: jax.Array


def queries_in_blocks(
    vectors_BD: jax.Array, labels_B: jax.Array, positives_BP: jax.Array, block: int
) -> Queries:
    """Returns [B, ...] as the fewest blocks of at most `block` queries."""
    return Queries(
        in_blocks(vectors_BD, block),
        in_blocks(labels_B, block, fill=-1),
        in_blocks(positives_BP, block),
        in_blocks(jnp.ones(labels_B.shape, bool), block),
    )


def documents_in_blocks(vectors_ND: jax.Array, rows_N: jax.Array, block: int) -> Documents:
    """Returns [N, ...] as the fewest blocks of at most `block` documents."""
    return Documents(in_blocks(vectors_ND, block), in_blocks(rows_N, block, fill=-1))


def in_blocks(x: jax.Array, block: int, fill: int = 0) -> jax.Array:
    """Returns [rows, ...] as the fewest blocks [count, size, ...] of at most `block` rows, padded."""
    rows = x.shape[0]
    count = -(-rows // block)
    size = -(-rows // count)
    x = jnp.pad(x, [(0, count * size - rows)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return x.reshape(count, size, *x.shape[1:])


@struct.dataclass
class Sum:
    """Of the exponentials of scores so far: total exp(largest)."""

    largest: jax.Array
    total: jax.Array

    def add(self, scores: jax.Array, axis: int) -> "Sum":
        largest = jnp.maximum(self.largest, scores.max(axis))
        base = jnp.where(largest == -jnp.inf, 0.0, largest)
        added = jnp.exp(scores - jnp.expand_dims(base, axis)).sum(axis)
        return Sum(largest, self.total * jnp.exp(self.largest - base) + added)

    def log(self) -> jax.Array:
        return self.largest + jnp.log(self.total)


def empty_sum(shape: tuple[int, ...]) -> Sum:
    return Sum(jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.float32))


@struct.dataclass
class QuerySums:
    """Of each query: `others` over the documents that count but its own, and the score of its `own`."""

    others: Sum
    own: jax.Array

    def log(self) -> jax.Array:
        return jnp.logaddexp(self.others.log(), self.own)


@struct.dataclass
class DocumentSums:
    """Of each document: `queries` over those that it counts for, and how many `owners` it has."""

    queries: Sum
    owners: jax.Array


def no_query_sums(shape: tuple[int, ...]) -> QuerySums:
    return QuerySums(empty_sum(shape), jnp.zeros(shape, jnp.float32))


def no_document_sums(shape: tuple[int, ...]) -> DocumentSums:
    return DocumentSums(empty_sum(shape), jnp.zeros(shape, jnp.float32))


def add_documents(
    queries_b: Queries,
    sums_b: QuerySums,
    documents: Documents,
    document_sums: DocumentSums | None,
    temperature: jax.Array,
    *,
    hold: bool = False,
) -> tuple[QuerySums, DocumentSums | None, jax.Array | None]:
    """Adds what one block of queries makes with all blocks of documents to the sums of both.

    Args:
      queries_b: one block; its labels are columns of these documents, or none of them.
      sums_b: of these queries so far.
      documents: K blocks of n.
      document_sums: [K, n] so far, or None where the loss does not go this way.
      temperature: [].
      hold: whether scores are returned.

    Returns:
      both sums, and the scores [K, b, n] or None.
    """

    def step(sums_b, part):
        number, documents_n, sums_n = part
        scores_bn = _scores(queries_b, documents_n, temperature)
        own_bn, negatives_bn = _masks(queries_b, documents_n, number)
        others_bn = jnp.where(negatives_bn & ~own_bn, scores_bn, -jnp.inf)
        own_b = jnp.where(own_bn, scores_bn, 0.0).sum(axis=1)
        sums_b = QuerySums(sums_b.others.add(others_bn, axis=1), sums_b.own + own_b)
        if sums_n is not None:
            counted_bn = (own_bn | negatives_bn) & queries_b.real[:, None]
            counted_bn = jnp.where(counted_bn, scores_bn, -jnp.inf)
            sums_n = DocumentSums(sums_n.queries.add(counted_bn, axis=0), sums_n.owners + own_bn.sum(axis=0))
        return sums_b, (sums_n, scores_bn if hold else None)

    numbered = jnp.arange(len(documents.rows)), documents, document_sums
    sums_b, (document_sums, scores_Kbn) = jax.lax.scan(step, sums_b, numbered)
    return sums_b, document_sums, scores_Kbn


def totals(
    queries: Queries, query_sums: QuerySums, document_sums: DocumentSums | None
) -> tuple[jax.Array, jax.Array]:
    """Returns the loss summed over queries, and over documents' owners, and how many queries are right."""
    loss = jnp.where(queries.real, query_sums.log() - query_sums.own, 0.0).sum()
    right = (queries.real & (query_sums.own > query_sums.others.largest)).sum().astype(jnp.float32)
    if document_sums is not None:
        owners = document_sums.owners
        loss += jnp.where(owners > 0, owners * document_sums.queries.log(), 0.0).sum()
        loss -= jnp.where(queries.real, query_sums.own, 0.0).sum()
    return loss, right


@struct.dataclass
class Softmax:
    """What makes weights of scores: factor exp(score - largest).

    Not exp(score - log) of one log: of a score of 100 that is right to 1e-5 only, and where a query's own
    weight is close to 1 what is left of the gradient would be that error.
    """

    largest: jax.Array
    factor: jax.Array

    def weights(self, scores: jax.Array, axis: int) -> jax.Array:
        return jnp.exp(scores - jnp.expand_dims(self.largest, axis)) * jnp.expand_dims(self.factor, axis)


class Softmaxes(NamedTuple):
    """The softmaxes whose weights are the gradient of scores.

    Attributes:
      query: [b], of queries.
      document: [K, n], of documents, a factor of 0 for those without an owner; None where the loss does not
        go this way.
      own: what the gradient of a query's own score is less.
    """

    query: Softmax
    document: Softmax | None
    own: float


def query_softmax(sums: QuerySums, count: int) -> Softmax:
    """The softmax of queries, of which `count` are averaged."""
    whole = sums.others.add(sums.own[..., None], axis=-1)
    return Softmax(whole.largest, 1 / (whole.total * count))


def document_softmax(sums: DocumentSums, count: int) -> Softmax:
    owned = sums.owners > 0
    factor = sums.owners / (jnp.where(owned, sums.queries.total, 1.0) * count)
    return Softmax(jnp.where(owned, sums.queries.largest, 0.0), factor)


def add_gradients(
    queries_b: Queries,
    softmaxes: Softmaxes,
    documents: Documents,
    gradient_KnD: jax.Array,
    temperature: jax.Array,
    scores_Kbn: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradient [b, D] of one block of queries, and that of documents with its part added.

    Args:
      queries_b, documents, temperature: as for `add_documents`.
      softmaxes: see `Softmaxes`.
      gradient_KnD: of the documents so far.
      scores_Kbn: if they were held.
    """

    def step(carry, part):
        gradient_bD, gradient_KnD = carry
        number, documents_n, softmax_n, scores_bn = part
        if scores_bn is None:
            scores_bn = _scores(queries_b, documents_n, temperature)
        own_bn, negatives_bn = _masks(queries_b, documents_n, number)
        weights_bn = softmaxes.query.weights(scores_bn, 1)
        if softmax_n is not None:
            weights_bn += softmax_n.weights(scores_bn, 0)
        counted_bn = (own_bn | negatives_bn) & queries_b.real[:, None]
        weights_bn = jnp.where(counted_bn, weights_bn, 0.0) - jnp.where(own_bn, softmaxes.own, 0.0)
        gradient_KnD = add_at(gradient_KnD, number, weights_bn.T @ queries_b.vectors / temperature)
        return (gradient_bD + weights_bn @ documents_n.vectors, gradient_KnD), None

    start = jnp.zeros_like(queries_b.vectors), gradient_KnD
    numbered = jnp.arange(len(documents.rows)), documents, softmaxes.document, scores_Kbn
    (gradient_bD, gradient_KnD), _ = jax.lax.scan(step, start, numbered)
    return gradient_bD / temperature, gradient_KnD


def _scores(queries_b: Queries, documents_n: Documents, temperature: jax.Array) -> jax.Array:
    return queries_b.vectors @ documents_n.vectors.T / temperature


def _masks(queries_b: Queries, documents_n: Documents, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns where in block `number` of documents a query's own is, and those that are not relevant."""
    size = documents_n.rows.shape[0]
    candidates = Candidates(queries_b.positives, documents_n.rows)
    return candidates.own(queries_b.labels - number * size), candidates.negatives()


def add_at(x: jax.Array, number: jax.Array, added: jax.Array) -> jax.Array:
    """Returns x [K, ...] with `added` [...] added to block `number`; in place where x is a loop's own."""
    block = jax.lax.dynamic_index_in_dim(x, number, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(x, block + added, number, 0)
