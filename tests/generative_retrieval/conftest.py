"""A speller that needs no training: logits that depend on the query and on all symbols so far."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generative_retrieval.docids import NONE
from generative_retrieval.speller import Speller


def logits_of(seed, path_T, size, scale):
    """The logits behind a path, float32 [V]; its symbols behind the end are NONE."""
    key = jax.random.key(seed)
    for symbol in path_T:
        key = jax.random.wrap_key_data(
            jnp.where(
                symbol == NONE,
                jax.random.key_data(key),
                jax.random.key_data(jax.random.fold_in(key, symbol.astype(jnp.uint32))),
            )
        )
    return scale * jax.random.normal(key, (size,))


class Tables:
    """Random logits for every path, as a Speller and as a log-probability of whole ids.

    Args:
      size: V.
      length: T.
      scale: of the logits.
    """

    def __init__(self, size, length, scale=2.0):
        self.size, self.length, self.scale = size, length, scale

    def speller(self, seeds_B):
        """The speller of queries, whose tables differ by their seeds."""
        batch = len(seeds_B)

        def start(slots):
            empty = jnp.full((batch, slots), NONE, jnp.int32)
            return {"symbols": empty, "depths": empty, "taken": jnp.zeros((), jnp.int32)}

        def step(symbols_BK, depth, visible_BKM, cache):
            put = lambda held, new: jax.lax.dynamic_update_slice_in_dim(held, new, cache["taken"], axis=1)
            symbols_BM = put(cache["symbols"], symbols_BK)
            depths_BM = put(cache["depths"], jnp.full_like(symbols_BK, depth))
            paths_BKT = []
            for place in range(1, self.length):  # the symbol read at each depth but the first, which is END
                there_BKM = visible_BKM & (depths_BM == place)[:, None]
                read_BK = jnp.where(there_BKM, symbols_BM[:, None], NONE).max(axis=2)
                paths_BKT.append(read_BK)
            paths_BKT = jnp.stack(paths_BKT, axis=2) if paths_BKT else symbols_BK[:, :, :0]
            of_one = lambda seed, path: logits_of(seed, path, self.size, self.scale)
            logits_BKV = jax.vmap(jax.vmap(of_one, (None, 0)))(jnp.asarray(seeds_B), paths_BKT)
            cache = {
                "symbols": symbols_BM,
                "depths": depths_BM,
                "taken": cache["taken"] + symbols_BK.shape[1],
            }
            return logits_BKV, cache

        return Speller(batch, start, step)

    def scores(self, seeds_B, symbols_NT):
        """log p of every id by walking it, float32 [B, N]."""

        def one(seed, id_T):
            total = jnp.float32(0)
            for depth in range(id_T.shape[0]):
                path = jnp.pad(id_T[:depth], (0, self.length - 1 - depth), constant_values=NONE)
                log_p_V = jax.nn.log_softmax(logits_of(seed, path, self.size, self.scale))
                total += jnp.where(id_T[depth] == NONE, 0.0, log_p_V[id_T[depth]])
            return total

        of_query = jax.vmap(one, (None, 0))
        return np.asarray(
            jax.jit(jax.vmap(of_query, (0, None)))(jnp.asarray(seeds_B), jnp.asarray(symbols_NT))
        )


@pytest.fixture
def tables():
    """The class `Tables`."""
    return Tables


def random_ids(rng, count, size, length, *, closed=True):
    """`count` different ids at most: with END behind lengths that vary, or all of one length."""
    found = {}
    for _ in range(count):
        codes = rng.integers(1, size, rng.integers(1, length) if closed else length)
        found[(*codes.tolist(), 0) if closed else tuple(codes.tolist())] = None
    symbols_NT = np.full((len(found), length), NONE, np.int32)
    for row, symbols in enumerate(found):
        symbols_NT[row, : len(symbols)] = symbols
    return symbols_NT


@pytest.fixture
def make_ids():
    """The function `random_ids`."""
    return random_ids
