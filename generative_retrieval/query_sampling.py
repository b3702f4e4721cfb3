"""Queries drawn from a query generator: several of each document, side by side, in one compiled loop.

Letters: B documents, K queries of each, T subwords of the longest query, V vocabulary, M slots of the cache.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from corpora.lengths import bucket, ladder
from corpora.tokenizer import Tokenizer
from corpora.tokens import TokenTable
from generative_retrieval import speller as spellers
from generative_retrieval.docids import END
from generative_retrieval.sampling import gumbel
from generative_retrieval.speller import Speller
from language_model.sampling import check, restrict
from moe import leakage
from training import mesh as meshes
from training.activations import constrained
from training.mesh import Layout

_ROWS = "rows"  # of a batch: the numbers of its documents


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How queries are drawn.

    Attributes:
      temperature, top_k, top_p: see `language_model.sampling.restrict`; a temperature of 0 takes the
        likeliest subword. Nogueira and Lin (2019), "From doc2query to docTTTTTquery", draw from the 10
        likeliest.

    Raises:
      ValueError: one is out of range.
    """

    temperature: float = 1.0
    top_k: int = 10
    top_p: float = 1.0

    def __post_init__(self):
        check(length=1, **dataclasses.asdict(self))


def sample(
    speller: Speller, keys_B: jax.Array, sampling: Sampling, *, queries: int, length: int
) -> jax.Array:
    """Draws queries. A pure function, to be traced by jax.jit.

    Args:
      speller: the generator with its documents.
      keys_B: a random key for each document. The k-th query of a document depends on its key and k alone.
      sampling: how.
      queries: K.
      length: T; a query that has not ended by then is cut off.

    Returns:
      int32 [B, K, T], the subwords of each, with END behind the last one.
    """
    logits_BV, cache = spellers.begin(speller, length, queries)
    batch = speller.batch_size
    own_K = jnp.arange(queries, dtype=jnp.int32)[None, :, None]
    lineage_BKT = jnp.broadcast_to(own_K, (batch, queries, length - 1))  # each descends from itself alone

    def grow(logits_BKV, depth, ended_BK, made_BKT):
        words_BK = _draw(logits_BKV, keys_B, depth, sampling)
        words_BK = jnp.where(ended_BK, END, words_BK)
        made_BKT = jax.lax.dynamic_update_slice_in_dim(made_BKT, words_BK[:, :, None], depth, axis=2)
        return words_BK, depth + 1, ended_BK | (words_BK == END), made_BKT

    def goes_on(carry):
        (_, depth, ended_BK, _), _ = carry
        return (depth < length) & ~ended_BK.all()

    def step(carry):
        (words_BK, depth, ended_BK, made_BKT), cache = carry
        seen_BKM = spellers.visible(lineage_BKT, depth)
        logits_BKV, cache = speller.step(words_BK, depth, seen_BKM, cache)
        return grow(logits_BKV, depth, ended_BK, made_BKT), cache

    logits_BKV = jnp.broadcast_to(logits_BV[:, None], (batch, queries, logits_BV.shape[-1]))
    ended_BK = jnp.zeros((batch, queries), bool)
    made_BKT = jnp.full((batch, queries, length), END, jnp.int32)
    carry = grow(logits_BKV, jnp.zeros((), jnp.int32), ended_BK, made_BKT), cache
    if length > 1:
        carry = jax.lax.while_loop(goes_on, step, carry)
    return carry[0][-1]


def _draw(logits_BKV: jax.Array, keys_B: jax.Array, depth: jax.Array, sampling: Sampling) -> jax.Array:
    """The next subword of each query, int32 [B, K]."""
    if not sampling.temperature:
        return jnp.argmax(logits_BKV, axis=-1).astype(jnp.int32)
    _, queries, vocabulary = logits_BKV.shape
    # Of the k likeliest alone, so that noise for the others is not drawn; of equal ones the first.
    count = min(sampling.top_k, vocabulary) or vocabulary
    best_BKV, words_BKV = jax.lax.top_k(logits_BKV, count)
    left = restrict(best_BKV.reshape(-1, count), temperature=sampling.temperature, top_p=sampling.top_p)
    noisy_BKV = left.reshape(best_BKV.shape) + gumbel(keys_B, depth, queries, count)
    chosen_BK1 = jnp.argmax(noisy_BKV, axis=-1, keepdims=True)
    return jnp.take_along_axis(words_BKV, chosen_BK1, axis=-1)[:, :, 0].astype(jnp.int32)


def texts(tokenizer: Tokenizer, made_NKT: np.ndarray) -> list[list[str]]:
    """Returns queries that were drawn as text; "" where nothing came before the END."""
    return [[tokenizer.decode(words_T[words_T != END]) for words_T in made_KT] for made_KT in made_NKT]


class Generator:
    """Draws queries of documents, in batches of a few fixed shapes; it compiles once a length.

    Args:
      model: such as `models.EncoderDecoder`.
      mesh: devices that share a batch, all of this process.
      layout: where activations lie on them; a rule may match none.
      sampling: how queries are drawn.
      queries: K, of each document.
      document_length, query_length: subwords at most.
      seed: of what is drawn. A query depends on it, the document's number and its own alone.
      batch_size: documents at a time; rounded up so that the mesh and the groups of sparse layers divide
        them.
      allow_batch_dependence: whether a query may depend on the other documents, see `moe.leakage`.

    Raises:
      ValueError: batch_size or queries is below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        mesh: Mesh,
        layout: Layout,
        sampling: Sampling,
        *,
        queries: int,
        document_length: int,
        query_length: int,
        seed: int,
        batch_size: int = 64,
        allow_batch_dependence: bool = False,
    ):
        for field, value in (("queries", queries), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{field} is {value}; allowed: 1 or more")
        self._model, self._mesh = model, mesh
        self._ladder, self._shape = ladder(document_length), (queries, query_length)
        multiple = meshes.batch_parts(mesh) * leakage.group_rows(model)
        self._batch_size = -(-batch_size // multiple) * multiple

        def run(variables: Any, batch: dict[str, jax.Array]) -> jax.Array:
            keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), batch.pop(_ROWS))
            speller = spellers.of(model, variables, batch, allow_batch_dependence=allow_batch_dependence)
            return sample(speller, keys_B, sampling, queries=queries, length=query_length)

        self._run = jax.jit(
            constrained(run, mesh, layout.activations, all_used=False),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )

    def __call__(
        self,
        variables: Any,
        table: TokenTable,
        numbers_N: np.ndarray,
        report: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Returns int32 [N, K, T], see `sample`.

        Args:
          variables: what the model is applied with, on the mesh.
          table: of N documents.
          numbers_N: their numbers, such as their rows in the collection, which say what is drawn.
          report: is told after each batch how many are done.
        """
        lengths_N = np.diff(table.offsets)
        longest_first = np.argsort(-lengths_N, kind="stable")
        made_NKT = np.zeros((len(table), *self._shape), np.int32)
        for start in range(0, len(table), self._batch_size):
            rows_B = longest_first[start : start + self._batch_size]
            padded_B = np.pad(rows_B, (0, self._batch_size - len(rows_B)), constant_values=-1)
            batch = table.rectangle(padded_B, bucket(int(lengths_N[rows_B[0]]), self._ladder))
            batch[_ROWS] = np.where(padded_B >= 0, numbers_N[padded_B], 0).astype(np.uint32)
            with leakage.in_force(self._model, self._mesh):
                made = self._run(variables, meshes.shard_batch(batch, self._mesh))
            made_NKT[rows_B] = np.asarray(made)[: len(rows_B)]
            if report:
                report(start + len(rows_B))
        return made_NKT
