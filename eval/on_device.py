"""Retrieval measures as pure functions of arrays, to stand inside a jitted step; equal to `eval.measures`.

    measure(scores [..., N], labels [..., N], *, where, retrieved, tie_rank, topn) -> float32 [...]

One value a query, with the conventions of `measures.evaluate`, which are trec_eval's. What they share:

    scores     floats, compared as float32, higher first; subnormal ones as 0, where the device has it so;
               NaN has no rank and makes the value meaningless
    labels     integer grades, 0 for an unjudged document; one >= `relevance_level` is relevant
    where      bool; False leaves a document out altogether, such as padding; None: all are there
    retrieved  bool; False says that the run does not list a document: it has no rank, and if it is relevant
               it is missed in recall, MAP, nDCG and R-precision; None: all are listed
    tie_rank   integers; among equal scores the lower comes first. trec_eval's order is the position of the
               doc_id among the ids in descending order. None: the lower index first
    topn       an integer of at least 1, the cut; None: the whole ranking

All arrays have the shape of `scores`. A query without a relevant document gets 0, and so does one whose run
is empty. `mrr` and `hits` are a pass over the documents, the others sort them: for 1,024 queries and as many
documents on two CPU cores 3 ms, and 0.4 s.

Raises:
  AssertionError: shapes that differ (chex).
  ValueError: topn or relevance_level is below 1.

Relations: rax (Jagerman et al., 2022, "Rax: Composable Learning-to-Rank using JAX") has measures of this
shape with conventions of its own: exponential gains, and precision over what is retrieved.

Letters: N documents, K of them within the cut.
"""

import chex
import jax
import jax.numpy as jnp

_LAST = jnp.iinfo(jnp.int32).max


def mrr(
    scores: jax.Array,
    labels: jax.Array,
    *,
    where: jax.Array | None = None,
    retrieved: jax.Array | None = None,
    tie_rank: jax.Array | None = None,
    topn: int | None = None,
    relevance_level: int = 1,
) -> jax.Array:
    """1 / the rank of the first relevant document; 0 where none is within the cut.

    >>> scores, labels = jnp.array([[3.0, 1.0, 2.0], [3.0, 2.0, 1.0]]), jnp.array([[0, 0, 1], [0, 0, 1]])
    >>> print(mrr(scores, labels, topn=2))
    [0.5 0. ]
    """
    rank = _first_relevant(scores, labels, where, retrieved, tie_rank, relevance_level)
    return jnp.where(rank <= _cut(scores, topn), 1.0 / rank, 0.0)


def hits(
    scores: jax.Array,
    labels: jax.Array,
    *,
    where: jax.Array | None = None,
    retrieved: jax.Array | None = None,
    tie_rank: jax.Array | None = None,
    topn: int | None = None,
    relevance_level: int = 1,
) -> jax.Array:
    """1 where a relevant document is within the cut; trec_eval's success.

    >>> print(hits(jnp.array([3.0, 1.0, 2.0]), jnp.array([0, 0, 1]), topn=1))
    0.0
    """
    rank = _first_relevant(scores, labels, where, retrieved, tie_rank, relevance_level)
    return (rank <= _cut(scores, topn)).astype(jnp.float32)


def ndcg(
    scores: jax.Array,
    labels: jax.Array,
    *,
    where: jax.Array | None = None,
    retrieved: jax.Array | None = None,
    tie_rank: jax.Array | None = None,
    topn: int | None = None,
) -> jax.Array:
    """DCG / the DCG of the best ranking, DCG being the sum over ranks r of grade / log2(1 + r).

    Gains are linear, grades below 0 count 0, and there is no level of relevance. Järvelin and Kekäläinen,
    2002, "Cumulated gain-based evaluation of IR techniques".

    >>> print(f"{ndcg(jnp.array([3.0, 1.0, 2.0]), jnp.array([0, 2, 1])):.4f}")  # (0.6309 + 1) / (2 + 0.6309)
    0.6199
    """
    present, listed = _masks(scores, labels, where, retrieved)
    gains = jnp.where(present, jnp.maximum(labels, 0), 0).astype(jnp.float32)
    found_K = _in_order(scores, gains, listed, tie_rank)[..., : _cut(scores, topn)]
    best_K = jnp.sort(gains, axis=-1, descending=True)[..., : _cut(scores, topn)]
    discount_K = jnp.log2(1.0 + _ranks(found_K))
    return _ratio((found_K / discount_K).sum(axis=-1), (best_K / discount_K).sum(axis=-1))


def map(
    scores: jax.Array,
    labels: jax.Array,
    *,
    where: jax.Array | None = None,
    retrieved: jax.Array | None = None,
    tie_rank: jax.Array | None = None,
    topn: int | None = None,
    relevance_level: int = 1,
) -> jax.Array:
    """Average precision: the precisions at the ranks of relevant documents, summed, over all relevant ones.

    >>> print(f"{map(jnp.array([3.0, 1.0, 2.0]), jnp.array([1, 1, 0])):.4f}")  # (1 / 1 + 2 / 3) / 2
    0.8333
    """
    found_N, relevant = _found(scores, labels, where, retrieved, tie_rank, relevance_level)
    found_K = found_N[..., : _cut(scores, topn)]
    precision_K = jnp.cumsum(found_K, axis=-1) / _ranks(found_K)
    return _ratio((precision_K * found_K).sum(axis=-1), relevant)


def recall(
    scores: jax.Array,
    labels: jax.Array,
    *,
    where: jax.Array | None = None,
    retrieved: jax.Array | None = None,
    tie_rank: jax.Array | None = None,
    topn: int | None = None,
    relevance_level: int = 1,
) -> jax.Array:
    """The share of the relevant documents that is within the cut.

    >>> print(recall(jnp.array([3.0, 1.0, 2.0]), jnp.array([1, 1, 0]), topn=2))
    0.5
    """
    found_N, relevant = _found(scores, labels, where, retrieved, tie_rank, relevance_level)
    return _ratio(found_N[..., : _cut(scores, topn)].sum(axis=-1), relevant)


def precision(
    scores: jax.Array,
    labels: jax.Array,
    *,
    where: jax.Array | None = None,
    retrieved: jax.Array | None = None,
    tie_rank: jax.Array | None = None,
    topn: int | None = None,
    relevance_level: int = 1,
) -> jax.Array:
    """The relevant documents within the cut, over the cut, even where fewer documents are retrieved.

    Without a cut it is over all that are retrieved, trec_eval's set_P.

    >>> print(precision(jnp.array([3.0, 1.0, 2.0]), jnp.array([1, 1, 0]), topn=4))
    0.5
    """
    found_N, _ = _found(scores, labels, where, retrieved, tie_rank, relevance_level)
    found = found_N[..., : _cut(scores, topn)].sum(axis=-1)
    if topn is not None:
        return found / topn
    _, listed = _masks(scores, labels, where, retrieved)
    return _ratio(found, listed.sum(axis=-1))


def r_precision(
    scores: jax.Array,
    labels: jax.Array,
    *,
    where: jax.Array | None = None,
    retrieved: jax.Array | None = None,
    tie_rank: jax.Array | None = None,
    relevance_level: int = 1,
) -> jax.Array:
    """The precision within the first R documents, R being how many are relevant to the query.

    >>> print(r_precision(jnp.array([3.0, 1.0, 2.0]), jnp.array([1, 1, 0])))
    0.5
    """
    found_N, relevant = _found(scores, labels, where, retrieved, tie_rank, relevance_level)
    return _ratio(jnp.where(_ranks(found_N) <= relevant[..., None], found_N, 0.0).sum(axis=-1), relevant)


def _masks(scores, labels, where, retrieved) -> tuple[jax.Array, jax.Array]:
    """Which documents there are, and which of them are listed."""
    chex.assert_equal_shape([x for x in (scores, labels, where, retrieved) if x is not None])
    present = jnp.ones(scores.shape, bool) if where is None else where
    return present, present if retrieved is None else present & retrieved


def _cut(scores: jax.Array, topn: int | None) -> int:
    if topn is not None and topn < 1:
        raise ValueError(f"topn is {topn}; allowed: an integer of at least 1, or None for the whole ranking")
    return scores.shape[-1] if topn is None else min(topn, scores.shape[-1])


def _ranks(x_K: jax.Array) -> jax.Array:
    """1, 2, ... along the last axis, [1, ..., K]."""
    return jnp.arange(1, x_K.shape[-1] + 1).reshape((1,) * (x_K.ndim - 1) + (-1,))


def _tie_rank(scores: jax.Array, tie_rank: jax.Array | None) -> jax.Array:
    if tie_rank is None:
        return jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    chex.assert_equal_shape([scores, tie_rank])
    return tie_rank.astype(jnp.int32)


def _in_order(scores, values, listed, tie_rank) -> jax.Array:
    """The documents' values by rank, and 0 beyond those that are listed."""
    keys = (~listed, -scores.astype(jnp.float32), _tie_rank(scores, tie_rank))
    return jax.lax.sort((*keys, jnp.where(listed, values, 0)), num_keys=3)[-1]


def _relevant(labels: jax.Array, relevance_level: int) -> jax.Array:
    if relevance_level < 1:
        raise ValueError(f"relevance_level is {relevance_level}; allowed: an integer of at least 1")
    return labels >= relevance_level


def _found(scores, labels, where, retrieved, tie_rank, relevance_level) -> tuple[jax.Array, jax.Array]:
    """1.0 at each rank that holds a relevant document [..., N]; how many are relevant [...]."""
    present, listed = _masks(scores, labels, where, retrieved)
    relevant = _relevant(labels, relevance_level) & present
    found_N = _in_order(scores, relevant.astype(jnp.float32), listed, tie_rank)
    return found_N, relevant.sum(axis=-1)


def _first_relevant(scores, labels, where, retrieved, tie_rank, relevance_level) -> jax.Array:
    """The rank of the first relevant document, int32 [...]; beyond every cut where there is none.

    Without a sort: it is the relevant document with the highest score and, among those, the lowest tie
    rank, and its rank is how many stand before it.
    """
    _, listed = _masks(scores, labels, where, retrieved)
    relevant = _relevant(labels, relevance_level) & listed
    scores, ties = scores.astype(jnp.float32), _tie_rank(scores, tie_rank)
    top = jnp.max(scores, axis=-1, keepdims=True, where=relevant, initial=-jnp.inf)
    tie = jnp.min(ties, axis=-1, keepdims=True, where=relevant & (scores == top), initial=_LAST)
    before = listed & ((scores > top) | ((scores == top) & (ties < tie)))
    return jnp.where(relevant.any(axis=-1), 1 + before.sum(axis=-1), _LAST)


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), 0.0)
