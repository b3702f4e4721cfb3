"""InfoNCE whose similarity matrix is never there whole: blocks of it, and over a mesh a ring of devices.

Equal to `objectives.softmax` in value, gradient and metrics. Scores are made a block of queries and
documents at a time, and what a query needs of them, the log of the sum of their exponentials, is summed up
as they come (Milakov and Gimelshein, 2018, "Online normalizer calculation for softmax"). Where the gradient
is asked for it is made with the loss, by hand; what comes from above only scales it. The memory beside the
vectors and their gradients is that of a few blocks, whatever the batch.

On one device, `info_nce` makes all scores of some queries, and their gradient from these: three products
of a block, as many as the plain form. Where so few queries fit that this would be slow, and in all other
cases, the scores are made twice, once for their sums and once for the gradient: four products. The compiler
may round them differently, by the last bit of a score: where a query is all but done, what is left of its
gradient is that (at a temperature of 0.01 and a batch of 13, 6e-5 where 8 is the largest possible).

Over a mesh, of the R devices along the batch axes each keeps its B / R queries, and the N / R documents of
each, with all that belongs to them, go around a ring (`ppermute` under `shard_map`; as in Liu et al., 2023,
"Ring Attention with Blockwise Transformers for Near-Infinite Context", and for this loss Cheng et al., 2024,
"Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive Loss"). What each device sends
for the value and the gradient, with n = N / R documents of width D (rounded up to whole blocks where n is
more than a block), is

    the sums      R - 1 passes of n (4 D + 4) bytes: vectors and rows
    the gradient  R - 1 passes of n (4 D + 4) bytes: the same; R passes of 4 n D bytes: their gradients,
                  which come home in the last

in bytes 4 n (D (3 R - 2) + 2 (R - 1)). `symmetric_info_nce` sends with them the sums of documents, 12 n bytes
in each of R passes, and in the second round their softmaxes, 8 n bytes in each of R - 1. The value alone
needs the first round only. Besides, a few scalars are added over all devices.

Letters: B queries, N documents, D width, P known positives of a query, R devices of the ring; I blocks of b
queries, K blocks of n documents.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dual_encoder import blocks
from dual_encoder.candidates import Candidates
from dual_encoder.objectives.arrays import Metrics
from training.mesh import BATCH_AXES

# Blocks of scores that are held on one device, where the gradient is made from the scores of the sums.
_HELD = 16
# With fewer queries at a time, to read and write the gradient of all documents takes longer than a product.
_FEWEST_HELD = 256


def info_nce(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    candidates: Candidates,
    temperature: float | jax.Array,
    block: int = 512,
) -> tuple[jax.Array, Metrics]:
    """`objectives.softmax.info_nce`, a block at a time.

    Over a mesh it has to be traced under `jax.set_mesh`; B and N are split over its batch axes.

    Args:
      query_vectors: float [B, D]; computed in float32.
      document_vectors: float [N, D]; in-batch documents and listed negatives alike.
      labels: int32 [B], the column of each query's relevant document.
      candidates: which documents count for a query; the mask [B, N] is never made.
      temperature: positive.
      block: queries and documents of a block at most; up to 16 blocks of scores are there at a time. What
        they do not divide is padded, by a copy.

    Returns:
      the loss, and `accuracy`, as `objectives.softmax.info_nce` has them.

    Raises:
      AssertionError: shapes that do not fit (chex).
      ValueError: a block below 1, or the mesh does not divide B or N.

    Relations: `dual_encoder.task.Contrastive(chunks=M)` saves the memory of the encoders.

    >>> q = jnp.eye(2)
    >>> candidates = Candidates(positives_BP=jnp.array([[5], [7]]), document_rows_N=jnp.array([5, 7]))
    >>> loss, metrics = info_nce(q, q, labels=jnp.arange(2), candidates=candidates, temperature=1.0)
    >>> print(f"{loss:.4f} {metrics['accuracy']:.1f}")  # log(1 + exp(-1))
    0.3133 1.0
    """
    return _objective(query_vectors, document_vectors, labels, candidates, temperature, block, False)


def symmetric_info_nce(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    candidates: Candidates,
    temperature: float | jax.Array,
    block: int = 512,
) -> tuple[jax.Array, Metrics]:
    """`objectives.softmax.symmetric_info_nce`, a block at a time.

    Arguments, results and errors are those of `info_nce`.
    """
    return _objective(query_vectors, document_vectors, labels, candidates, temperature, block, True)


def _objective(query_BD, document_ND, labels_B, candidates, temperature, block, symmetric):
    chex.assert_rank([query_BD, document_ND, candidates.positives_BP], 2)
    chex.assert_equal_shape_suffix([query_BD, document_ND], 1)
    chex.assert_equal_shape_prefix([query_BD, labels_B, candidates.positives_BP], 1)
    chex.assert_shape(candidates.document_rows_N, (document_ND.shape[0],))
    if block < 1:
        raise ValueError(f"block is {block}; it must be at least 1")
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in BATCH_AXES if mesh.shape.get(name, 1) > 1)
    devices = math.prod(mesh.shape[name] for name in axes)
    for name, x in (("query_vectors", query_BD), ("document_vectors", document_ND)):
        if x.shape[0] % devices:
            sizes = ", ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
            raise ValueError(
                f"{name} has {x.shape[0]} rows, which the {devices} devices of the batch axes ({sizes}) do "
                "not divide"
            )
    scheme = _Scheme(
        symmetric, block, axes, devices, *(x.shape[0] // devices for x in (query_BD, document_ND))
    )
    query_BD, document_ND = query_BD.astype(jnp.float32), document_ND.astype(jnp.float32)
    temperature = jnp.asarray(temperature, jnp.float32)
    loss, accuracy = _streamed(scheme, query_BD, document_ND, temperature, labels_B, candidates)
    return loss, {"accuracy": accuracy}


class _Scheme(NamedTuple):
    """What is the same on all devices and known before any array."""

    symmetric: bool
    block: int
    axes: tuple[str, ...]  # of the ring
    devices: int
    queries: int  # of each device
    documents: int  # of each device

    @property
    def terms(self) -> int:
        """Softmax terms that the loss is the mean of."""
        return self.queries * self.devices * (2 if self.symmetric else 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _streamed(scheme, *arrays):
    return _on_devices(scheme, _value, _WHOLE)(*arrays)


def _streamed_forward(scheme, *arrays):
    value, *gradients = _on_devices(scheme, _value_and_gradients, _WHOLE, _ROWS, _ROWS, _WHOLE)(*arrays)
    return value, gradients


def _streamed_backward(scheme, gradients, cotangents):
    del scheme
    of_loss, _ = cotangents  # the accuracy is a count: it has no gradient
    return (*(of_loss * gradient for gradient in gradients), None, None)


_streamed.defvjp(_streamed_forward, _streamed_backward)

_ROWS, _WHOLE = "rows", "whole"


def _on_devices(scheme: _Scheme, function: Callable, *results: str) -> Callable:
    """Returns `function(scheme, *arrays)`, run by each device with its rows of queries and documents."""
    function = functools.partial(function, scheme)
    if scheme.devices == 1:
        return function
    spec = {_ROWS: PartitionSpec(scheme.axes), _WHOLE: PartitionSpec()}
    return jax.shard_map(
        function,
        in_specs=tuple(spec[x] for x in (_ROWS, _ROWS, _WHOLE, _ROWS, _ROWS)),
        out_specs=tuple(spec[x] for x in results) if len(results) > 1 else spec[results[0]],
        axis_names=set(scheme.axes),  # the others are left to the compiler
        check_vma=False,
    )


def _value(scheme, query_BD, document_ND, temperature, labels_B, candidates):
    """Returns (loss, accuracy)."""
    queries = blocks.queries_in_blocks(query_BD, labels_B, candidates.positives_BP, scheme.block)
    documents = blocks.documents_in_blocks(document_ND, candidates.document_rows_N, scheme.block)
    sums = _first_round(scheme, queries, documents, temperature)
    return _mean(scheme, blocks.totals(queries, *sums))


def _value_and_gradients(scheme, query_BD, document_ND, temperature, labels_B, candidates):
    """Returns (loss, accuracy), and the gradients of the vectors and of the temperature."""
    block, evaluate = scheme.block, _in_two_rounds
    held = _HELD * block**2 // scheme.documents
    if scheme.devices == 1 and not scheme.symmetric and held >= min(_FEWEST_HELD, scheme.queries):
        block, evaluate = min(block, held), _at_once
    queries = blocks.queries_in_blocks(query_BD, labels_B, candidates.positives_BP, block)
    documents = blocks.documents_in_blocks(document_ND, candidates.document_rows_N, scheme.block)
    totals, of_queries, of_documents = evaluate(scheme, queries, documents, temperature)
    of_queries = of_queries.reshape(-1, query_BD.shape[1])[: scheme.queries]
    of_documents = of_documents.reshape(-1, query_BD.shape[1])[: scheme.documents]
    # A score s is q . d / t: the sum of all (gradient of s) s is that of all q . (gradient of q).
    of_temperature = -_over_devices(scheme, (query_BD * of_queries).sum()) / temperature
    return _mean(scheme, totals), of_queries, of_documents, of_temperature


def _at_once(scheme, queries, documents, temperature):
    """On one device: the scores of a block of queries are held from their sums to their gradient."""

    def step(carry, part):
        totals, of_queries, of_documents = carry
        number, queries_b = part
        sums_b = blocks.no_query_sums(queries_b.labels.shape)
        sums_b, _, held = blocks.add_documents(queries_b, sums_b, documents, None, temperature, hold=True)
        softmaxes = blocks.Softmaxes(blocks.query_softmax(sums_b, scheme.terms), None, 1 / scheme.queries)
        of_block, of_documents = blocks.add_gradients(
            queries_b, softmaxes, documents, of_documents, temperature, held
        )
        totals = jax.tree.map(jnp.add, totals, blocks.totals(queries_b, sums_b, None))
        return (totals, blocks.add_at(of_queries, number, of_block), of_documents), None

    start = (
        (jnp.float32(0), jnp.float32(0)),
        jnp.zeros_like(queries.vectors),
        jnp.zeros_like(documents.vectors),
    )
    carry, _ = jax.lax.scan(step, start, (jnp.arange(len(queries.labels)), queries))
    return carry


def _in_two_rounds(scheme, queries, documents, temperature):
    """The scores are made for their sums, and again for the gradient."""
    query_sums, document_sums = _first_round(scheme, queries, documents, temperature)
    query_softmax = blocks.query_softmax(query_sums, scheme.terms)
    document_softmax = blocks.document_softmax(document_sums, scheme.terms) if scheme.symmetric else None

    def visit(of_queries, lent, of_documents, first):
        documents, document_softmax = lent

        def step(carry, part):
            of_queries, of_documents = carry
            number, queries_b, query_softmax_b = part
            own = 1 / (scheme.queries * scheme.devices)
            softmaxes = blocks.Softmaxes(query_softmax_b, document_softmax, own)
            of_block, of_documents = blocks.add_gradients(
                _at_columns(scheme, queries_b, first), softmaxes, documents, of_documents, temperature
            )
            return (blocks.add_at(of_queries, number, of_block), of_documents), None

        parts = jnp.arange(len(queries.labels)), queries, query_softmax
        return jax.lax.scan(step, (of_queries, of_documents), parts)[0]

    gradients = jnp.zeros_like(queries.vectors), jnp.zeros_like(documents.vectors)
    lent = documents, document_softmax
    gradients = _ring(scheme, visit, gradients[0], lent, gradients[1])
    return blocks.totals(queries, query_sums, document_sums), *gradients


def _first_round(scheme, queries, documents, temperature):
    """Returns the sums of this device's queries over all documents, and of its documents over all queries."""

    def visit(query_sums, documents, document_sums, first):
        def step(document_sums, part):
            queries_b, sums_b = part
            sums_b, document_sums, _ = blocks.add_documents(
                _at_columns(scheme, queries_b, first), sums_b, documents, document_sums, temperature
            )
            return document_sums, sums_b

        document_sums, query_sums = jax.lax.scan(step, document_sums, (queries, query_sums))
        return query_sums, document_sums

    document_sums = blocks.no_document_sums(documents.rows.shape) if scheme.symmetric else None
    query_sums = blocks.no_query_sums(queries.labels.shape)
    return _ring(scheme, visit, query_sums, documents, document_sums)


def _ring(scheme: _Scheme, visit: Callable, kept: Any, lent: Any, returned: Any) -> tuple[Any, Any]:
    """Brings the documents of every device to every device, where `visit` takes them up.

    Args:
      scheme: the ring; on one device there is one visit and nothing is sent.
      visit: `(kept, lent, returned, first) -> (kept, returned)`; `first` is the documents' first column.
      kept: what stays on the device.
      lent: what travels with the documents and is not changed.
      returned: what travels with them, is changed, and comes home at the end.

    Returns:
      what was kept and what was returned.
    """
    if scheme.devices == 1:
        return visit(kept, lent, returned, 0)
    neighbors = [(device, (device + 1) % scheme.devices) for device in range(scheme.devices)]
    send = lambda tree: jax.tree.map(lambda x: jax.lax.ppermute(x, scheme.axes, neighbors), tree)
    here = jax.lax.axis_index(scheme.axes)
    first = lambda turn: (here - turn) % scheme.devices * scheme.documents

    def step(carry, turn):
        kept, lent, returned = carry
        arriving = send(lent)  # needs nothing of the visit, so the two can overlap
        kept, returned = visit(kept, lent, returned, first(turn))
        return (kept, arriving, send(returned)), None

    turns = scheme.devices - 1
    (kept, lent, returned), _ = jax.lax.scan(step, (kept, lent, returned), jnp.arange(turns))
    kept, returned = visit(kept, lent, returned, first(turns))
    return kept, send(returned)


def _at_columns(scheme: _Scheme, queries_b: blocks.Queries, first: jax.Array) -> blocks.Queries:
    """Returns queries with their labels as columns of the documents from column `first` on."""
    labels_b = queries_b.labels - first
    there_b = (labels_b >= 0) & (labels_b < scheme.documents)
    return queries_b.replace(labels=jnp.where(there_b, labels_b, -1))


def _mean(scheme: _Scheme, totals: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    loss, correct = _over_devices(scheme, totals)
    return loss / scheme.terms, correct / (scheme.queries * scheme.devices)


def _over_devices(scheme: _Scheme, tree: Any) -> Any:
    return jax.lax.psum(tree, scheme.axes) if scheme.devices > 1 else tree
