"""Exact maximum inner product search: the oracle of every other index.

Documents are scored a chunk at a time, so the [Q, N] score matrix never exists; a running top-k is
carried from chunk to chunk. Sorting whole chunks would cost more than scoring them, so the scores are
first reduced to the maxima of small blocks of documents, and only blocks that can still matter are
looked into:

  * The top k of a chunk lie in the k blocks with the largest maxima, the lower block first where
    maxima tie. (If a document of another block were among them, each of those k blocks would hold a
    document that precedes it, by score or, at an equal score, by row.)
  * Once k documents are known, a document of a later chunk enters only with a score strictly above
    the k-th. So only blocks whose maximum is above it matter: after the first chunks, a handful.

The rule that picks the amount of work is therefore made of data: of a short ladder of block counts (0,
8, 16, ... k) each chunk takes the smallest that covers its busiest query. It is the same on every
backend, and the answer is exact whatever the order of the documents; only the time depends on it.

Dimension letters: Q queries, N documents, D vector width, K results, M chunks, C documents of a
chunk, G blocks of a chunk, S documents of a block, T blocks looked into.
"""

import functools
import operator

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_BLOCK = 16  # documents; a smaller block makes more maxima, a larger one more candidates to sort
_SMALLEST_STEP = 8  # of the ladder of block counts
_DTYPES = ("float32", "bfloat16", "float16")


@flax.struct.dataclass
class ExactIndex:
    """The vectors [N, D] of a corpus, cut into chunks [M, C, D], the last one padded with zeros.

    Attributes:
      chunks: float32, bfloat16 or float16 [M, C, D].
      size: N, the number of documents; static under `jit`.
    """

    chunks: jax.Array
    size: int = flax.struct.field(pytree_node=False)


def build(vectors, *, chunk: int | None = None) -> ExactIndex:
    """Makes an index of `vectors`; a pure function of arrays, also under `jit`.

    Args:
      vectors: [N, D] floating point; float32, bfloat16 and float16 are kept, float64 becomes float32.
      chunk: documents scored at a time, rounded up to whole blocks; by default what suits the
        backend. The result of a search does not depend on it.

    Raises:
      ValueError: if `vectors` is not a floating-point [N, D] with N, D >= 1, or has non-finite values
        (seen only outside `jit`), or `chunk` is below 1.
    """
    vectors = _checked_vectors("vectors", vectors)
    N, D = vectors.shape
    if chunk is None:
        chunk = _default_sizes()[0]
    elif chunk < 1:
        raise ValueError(f"chunk is {chunk}; at least 1 is needed")
    count = -(-N // chunk)
    chunk = _round_up(-(-N // count), _BLOCK)  # even chunks: less padding than one short last chunk
    vectors_ND = jnp.pad(jnp.asarray(vectors), ((0, count * chunk - N), (0, 0)))
    return ExactIndex(chunks=vectors_ND.reshape(count, chunk, D), size=N)


def search(
    index: ExactIndex, queries, k: int, *, query_batch: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the k documents with the largest inner products with each query.

    Products are summed in float32 (and, for float32 vectors, at full precision on every backend).
    Queries are padded to whole batches, so that every number of queries runs one compiled program.

    Args:
      index: from `build`.
      queries: [Q, D] floating point.
      k: results per query; may exceed N.
      query_batch: queries scored at a time; by default what suits the backend.

    Returns:
      scores: float32 [Q, k], descending; -inf where there is no document.
      rows: int32 [Q, k], rows of the vectors; -1 where there is no document. Equal scores are in
        the order of their rows.

    Raises:
      ValueError: if `queries` is not a floating-point [Q, D] with Q >= 1 and the index's D, or has
        non-finite values (seen only outside `jit`), or `k` or `query_batch` is below 1.
    """
    queries = _checked_vectors("queries", queries)
    Q, D = queries.shape
    width = index.chunks.shape[2]
    if width != D:
        raise ValueError(f"queries are {D} wide and the index is {width} wide")
    k = operator.index(k)
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is needed")
    if query_batch is None:
        query_batch = _default_sizes()[1]
    elif query_batch < 1:
        raise ValueError(f"query_batch is {query_batch}; at least 1 is needed")
    count = -(-Q // query_batch)
    pad = ((0, count * query_batch - Q), (0, 0))
    if _is_traced(queries) or _is_traced(index.chunks):
        batches = jnp.pad(queries, pad).reshape(count, query_batch, D)
        scores, rows = lax.map(lambda batch: _search_batch(index, batch, k), batches)
        return scores.reshape(-1, k)[:Q], rows.reshape(-1, k)[:Q]
    if count == 1 and query_batch == Q:
        return _search_batch(index, jnp.asarray(queries), k)
    # Padded and cut outside of jax, which would compile once more for each number of queries.
    batches = np.pad(np.asarray(queries), pad).reshape(count, query_batch, D)
    found = [_search_batch(index, jnp.asarray(batch), k) for batch in batches]
    scores = np.concatenate([np.asarray(scores) for scores, _ in found])[:Q]
    rows = np.concatenate([np.asarray(rows) for _, rows in found])[:Q]
    return jnp.asarray(scores), jnp.asarray(rows)


@functools.partial(jax.jit, static_argnums=2)
def _search_batch(index: ExactIndex, queries_QD: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    M, C, _ = index.chunks.shape
    Q = queries_QD.shape[0]
    G = C // _BLOCK
    dtype = jnp.promote_types(index.chunks.dtype, queries_QD.dtype)
    queries_QD = queries_QD.astype(dtype)
    row_in_chunk = jnp.arange(C, dtype=jnp.int32).reshape(G, _BLOCK, 1)
    ladder = _ladder(k, G)

    def step(best, xs):
        chunk_CD, number = xs
        first = number * C
        # Documents lead and queries are innermost: block maxima are then elementwise over queries.
        scores_CQ = lax.dot_general(
            chunk_CD.astype(dtype),
            queries_QD,
            (((1,), (1,)), ((), ())),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        scores_GSQ = scores_CQ.reshape(G, _BLOCK, Q)
        is_document = row_in_chunk < index.size - first
        maxima_GQ = _positive_zero(jnp.where(is_document, scores_GSQ, -jnp.inf).max(axis=1))
        can_enter_GQ = maxima_GQ > best[0][:, -1][None, :]
        needed = can_enter_GQ.sum(axis=0, dtype=jnp.int32).max()
        branch = sum((needed > count).astype(jnp.int32) for count in ladder[:-1])
        branches = [functools.partial(_merge, count, index.size) for count in ladder]
        return lax.switch(branch, branches, best, scores_CQ, maxima_GQ, first), None

    nothing = jnp.full((Q, k), -jnp.inf, jnp.float32), jnp.full((Q, k), -1, jnp.int32)
    best, _ = lax.scan(step, nothing, (index.chunks, jnp.arange(M, dtype=jnp.int32)))
    return best


def _merge(count: int, size: int, best, scores_CQ: jax.Array, maxima_GQ: jax.Array, first: jax.Array):
    """Merges the documents of the `count` best blocks of a chunk, whose first row is `first`, into `best`."""
    best_scores_QK, best_rows_QK = best
    k = best_scores_QK.shape[1]
    G, Q = maxima_GQ.shape
    if count == 0:
        return best
    if count == G:
        blocks_QT = jnp.broadcast_to(jnp.arange(G, dtype=jnp.int32)[None, :], (Q, G))
    else:
        # In the order of rows, for top_k puts the first of equal scores first.
        blocks_QT = jnp.sort(lax.top_k(maxima_GQ.T, count)[1], axis=1)
    member_S = jnp.arange(_BLOCK, dtype=jnp.int32)
    in_chunk = (blocks_QT[:, :, None] * _BLOCK + member_S[None, None, :]).reshape(Q, count * _BLOCK)
    flat = in_chunk * Q + jnp.arange(Q, dtype=jnp.int32)[:, None]
    scores = _positive_zero(scores_CQ.reshape(-1).at[flat].get(mode="promise_in_bounds"))
    rows = first + in_chunk
    scores = jnp.where(rows < size, scores, -jnp.inf)
    # The rows found before are lower, so they stand first, and -1 before the padding at -inf.
    scores = jnp.concatenate([best_scores_QK, scores], axis=1)
    rows = jnp.concatenate([best_rows_QK, rows], axis=1)
    best_scores_QK, at_QK = lax.top_k(scores, k)
    return best_scores_QK, jnp.take_along_axis(rows, at_QK, axis=1, mode="promise_in_bounds")


def _ladder(k: int, blocks: int) -> list[int]:
    """Block counts to choose from: 0, 8, 16, ... and at last k, or all blocks where they are fewer."""
    last = min(k, blocks)
    steps = [0]
    step = _SMALLEST_STEP
    while step < last:
        steps.append(step)
        step *= 2
    return [*steps, last]


def _positive_zero(x: jax.Array) -> jax.Array:
    # top_k puts -0.0 below 0.0; as scores they tie.
    return jnp.where(x == 0, jnp.float32(0), x)


def _default_sizes() -> tuple[int, int]:
    """Documents of a chunk and queries of a batch: on CPU their scores (2 MiB) stay in the cache."""
    return (8192, 64) if jax.default_backend() == "cpu" else (65536, 512)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _is_traced(x) -> bool:
    return isinstance(x, jax.core.Tracer)


def _checked_vectors(name: str, vectors):
    """Returns `vectors` in a dtype that is searched, or raises a ValueError that names what is wrong."""
    if not isinstance(vectors, jax.Array):
        vectors = np.asarray(vectors)
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(
            f"{name} has shape {tuple(vectors.shape)}; [rows, width] with at least one of each is needed"
        )
    if vectors.dtype == np.float64:
        vectors = vectors.astype(np.float32)
    if vectors.dtype not in [jnp.dtype(allowed) for allowed in _DTYPES]:
        raise ValueError(f"{name} has dtype {vectors.dtype}; allowed: {', '.join(_DTYPES)}, float64")
    if not _is_traced(vectors):
        # In slices: a mask of the whole array need not exist either.
        xp = jnp if isinstance(vectors, jax.Array) else np
        for start in range(0, vectors.shape[0], 1 << 18):
            bad = ~np.asarray(xp.isfinite(vectors[start : start + (1 << 18)]).all(axis=1))
            if bad.any():
                raise ValueError(
                    f"{name} has non-finite values (NaN or infinity), "
                    f"first in row {start + int(bad.argmax())}"
                )
    return vectors
