"""What searches and samplers know of a model: it reads symbols and gives logits for the next ones.

The K symbols of a step are further positions of one row, each of which sees the query and those slots of the
cache that hold its own beginning. So all K share the query's keys and values, and nothing is ever moved:
who descends from whom is a small table of slots.

    slot 0                        END, which every id is begun behind, once a query
    slots 1 + t K ... (t + 1) K   symbol t of the K ids that are being spelled

Letters: B queries, K ids of each that are being spelled, T symbols of the longest id, M slots, V symbols.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from generative_retrieval.docids import END
from training.task import Batch

Cache = Any


@dataclasses.dataclass(frozen=True)
class Speller:
    """A model with B queries.

    Attributes:
      batch_size: B.
      start: `slots M -> cache`, for so many symbols a query.
      step: `(symbols int32 [B, K], depth int32 [], visible bool [B, K, M], cache) -> (logits float32
        [B, K, V], cache)`. Takes the next K slots. `depth` is how many symbols of an id were read before,
        END behind which it stands included; `visible` says which slots each of the K sees, its own among
        them.
    """

    batch_size: int
    start: Callable[[int], Cache]
    step: Callable[[jax.Array, jax.Array, jax.Array, Cache], tuple[jax.Array, Cache]]


def of(model: nn.Module, variables: Any, batch: Batch, *, allow_batch_dependence: bool = False) -> Speller:
    """Returns the speller of a model such as `models.EncoderDecoder`.

    Args:
      model: with methods `start` and `step`, see `models`.
      variables: what it is applied with.
      batch: the queries, `tokens` and `mask` [B, S].
      allow_batch_dependence: whether what is spelled may depend on the other queries, see `moe.leakage`.

    Raises:
      DependenceError: (in `start`) it does, and that is not allowed.
    """

    def start(slots: int) -> Cache:
        allowed = dict(allow_batch_dependence=allow_batch_dependence)
        return model.apply(variables, batch, slots, **allowed, method="start")

    def step(symbols_BK, depth, visible_BKM, cache):
        return model.apply(variables, symbols_BK, depth, visible_BKM, cache, method="step")

    return Speller(len(batch["tokens"]), start, step)


def slots(length: int, ids: int) -> int:
    """The slots M that ids of `length` symbols take: their last symbol is never read."""
    return 1 + (length - 1) * ids


def begin(speller: Speller, length: int, ids: int) -> tuple[jax.Array, Cache]:
    """Reads END for each query.

    Args:
      speller: the model.
      length: T.
      ids: K, how many will be spelled.

    Returns:
      logits float32 [B, V] of the first symbol, and the cache.
    """
    cache = speller.start(slots(length, ids))
    end_B1 = jnp.full((speller.batch_size, 1), END, jnp.int32)
    seen_B1M = jnp.zeros((speller.batch_size, 1, slots(length, ids)), bool).at[:, :, 0].set(True)
    logits_B1V, cache = speller.step(end_B1, jnp.zeros((), jnp.int32), seen_B1M, cache)
    return logits_B1V[:, 0], cache


def lineage(batch_size: int, length: int, ids: int) -> jax.Array:
    """Who descends from whom before anything is spelled, for `descend` and `visible`: int32 [B, K, T - 1]."""
    return jnp.zeros((batch_size, ids, length - 1), jnp.int32)


def descend(lineage_BKT: jax.Array, parents_BK: jax.Array, depth: jax.Array) -> jax.Array:
    """The lineage of ids that go on from `parents_BK` with a symbol that is read at `depth`, 1 or more."""
    ids = lineage_BKT.shape[1]
    moved_BKT = jnp.take_along_axis(lineage_BKT, parents_BK[:, :, None], axis=1)
    own_BK = jnp.broadcast_to(jnp.arange(ids, dtype=jnp.int32)[None], parents_BK.shape)
    return jax.lax.dynamic_update_slice_in_dim(moved_BKT, own_BK[:, :, None], depth - 1, axis=2)


def visible(lineage_BKT: jax.Array, depth: jax.Array) -> jax.Array:
    """Which slots each id sees at a step whose symbols were read at `depth`, 1 or more: bool [B, K, M]."""
    batch, ids, depths = lineage_BKT.shape
    own_BKTK = lineage_BKT[:, :, :, None] == jnp.arange(ids, dtype=jnp.int32)[None, None, None]
    read_T = jnp.arange(depths) < depth
    own_BKM = (own_BKTK & read_T[None, None, :, None]).reshape(batch, ids, depths * ids)
    return jnp.concatenate([jnp.ones((batch, ids, 1), bool), own_BKM], axis=2)
