"""Adaptive sampling with approximate expected futures (ASAp): masking that learns where dead ends are.

Park et al. (2024), "Grammar-Aligned Decoding". The model's distribution given that it writes a docid draws
the next symbol by p(symbol | beginning) c(beginning + symbol), where c, the expected future grammaticality,
is the probability that what the model writes behind a beginning makes it a docid. Plain masking takes 1 for c
of every beginning of a docid. ASAp starts so too, and learns from each sample: for the beginnings S of all
samples so far

    c(beginning) = sum over symbols of p(symbol | beginning) c(beginning + symbol)      if it is in S
    c(beginning) = 1 if a live docid begins so, else 0                                  if it is not

and the next sample is drawn with these. They never fall below the true ones, and become them as samples go
on.

In the paper S is a trie that grows with the samples, over a grammar. Here the grammar is the docids' own
trie, so c is an array over its nodes, a table for each query, on the device: 1 everywhere at first, a whole
docid (a leaf) always 1, and a node's c is set anew, from the leaf up, on the path of each sample. A beginning
that no live docid has needs no entry: its c is 0. It takes 4 bytes a node and query, so it is for tries up to
millions of nodes and few queries at a time.

Letters: B queries, K samples of an iteration, I iterations, V symbols, T symbols of the longest id.
"""

import jax
import jax.numpy as jnp
from flax import struct

from generative_retrieval import sampling
from generative_retrieval.docids import NONE
from generative_retrieval.sampling import Move, Particles, Samples
from generative_retrieval.speller import Speller
from generative_retrieval.trie import Live, Trie


@struct.dataclass
class Futures:
    """What ASAp has learned of some queries.

    Attributes:
      log_c_BX: float32, the logarithm of c of each of the X nodes of the trie, for each query.
    """

    log_c_BX: jax.Array


@struct.dataclass
class _Path:
    """What a particle met on its way.

    Attributes:
      log_q_BK: float32.
      nodes_BKT: int32, where it stood at each depth; -1 where it had ended.
      log_p_BKTV: float32, the model's log-probabilities there.
    """

    log_p_BK: jax.Array
    log_q_BK: jax.Array
    nodes_BKT: jax.Array
    log_p_BKTV: jax.Array


def nothing_learned(trie: Trie, batch_size: int) -> Futures:
    """The futures before the first sample, with which sampling is plain masking."""
    return Futures(jnp.zeros((batch_size, trie.symbols.shape[0]), jnp.float32))


def sample(
    speller: Speller,
    trie: Trie,
    keys_B: jax.Array,
    *,
    iterations: int,
    particles: int = 1,
    live: Live | None = None,
    futures: Futures | None = None,
) -> tuple[Samples, Futures]:
    """Draws documents, each with what was learned from those before.

    A pure function, to be traced by jax.jit.

    Args:
      speller: the model with its queries.
      trie: the docids.
      keys_B: see `sampling.keys`; another call for the same queries needs others.
      iterations: I.
      particles: K, samples drawn in an iteration before anything is learned from them. 1 is the published
        algorithm; with more, what is learned from the same samples is the same.
      live: which documents may be drawn; None for all. Futures hold for the same ones only.
      futures: what earlier calls learned of the same queries; None for nothing.

    Returns:
      I times K samples of each query, iteration after iteration, with `log_q` at the time they were drawn;
      and the futures.

    Raises:
      ValueError: iterations or particles is below 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; allowed: 1 or more")
    sampling.check_particles(particles)
    batch = speller.batch_size
    first = nothing_learned(trie, batch) if futures is None else futures

    def iteration(log_c_BX: jax.Array, number: jax.Array) -> tuple[jax.Array, Samples]:
        now_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
        nodes_BK, path = _drawn(speller, trie, live, now_B, particles, log_c_BX)
        samples = sampling.samples(trie, nodes_BK, path.log_p_BK, path.log_q_BK)
        return _learned(trie, live, log_c_BX, path), samples

    log_c_BX, samples_IBK = jax.lax.scan(iteration, first.log_c_BX, jnp.arange(iterations))
    flat = lambda part_IBK: jnp.moveaxis(part_IBK, 0, 1).reshape(batch, iterations * particles)
    return jax.tree.map(flat, samples_IBK), Futures(log_c_BX)


def _drawn(speller, trie, live, keys_B, particles, log_c_BX) -> tuple[jax.Array, _Path]:
    def choose(at: Particles, path: _Path) -> Move:
        scores_BKV = at.log_p_BKV + _log_c(trie, live, log_c_BX, at.nodes_BK)
        log_q_BKV = jax.nn.log_softmax(scores_BKV, axis=-1)
        noise_BKV = sampling.gumbel(keys_B, at.depth, particles, trie.size)
        symbols_BK = jnp.argmax(log_q_BKV + noise_BKV, axis=-1).astype(jnp.int32)
        nodes_BK = sampling.going_on(trie, live, at, symbols_BK)
        put = lambda held, new: jax.lax.dynamic_update_slice_in_dim(held, new[:, :, None], at.depth, axis=2)
        return Move(
            nodes_BK,
            sampling.own(nodes_BK),
            _Path(
                path.log_p_BK + jnp.where(at.going_BK, sampling.picked(at.log_p_BKV, symbols_BK), 0.0),
                path.log_q_BK + jnp.where(at.going_BK, sampling.picked(log_q_BKV, symbols_BK), 0.0),
                put(path.nodes_BKT, jnp.where(at.going_BK, at.nodes_BK, NONE)),
                put(path.log_p_BKTV, at.log_p_BKV),
            ),
        )

    shape_BKT = (speller.batch_size, particles, trie.length)
    none = _Path(
        jnp.zeros(shape_BKT[:2], jnp.float32),
        jnp.zeros(shape_BKT[:2], jnp.float32),
        jnp.full(shape_BKT, NONE, jnp.int32),
        jnp.zeros((*shape_BKT, trie.size), jnp.float32),
    )
    return sampling.walk(speller, trie, particles, choose, none)


def _log_c(trie: Trie, live: Live | None, log_c_BX: jax.Array, nodes_BK: jax.Array) -> jax.Array:
    """log c of what each symbol makes of each node, -inf where no live docid begins so: [B, K, V]."""
    shape_BKV = (*nodes_BK.shape, trie.size)
    symbols_BKV = jax.lax.broadcasted_iota(jnp.int32, shape_BKV, 2)
    children_BKV = trie.child(jnp.broadcast_to(nodes_BK[:, :, None], shape_BKV), symbols_BKV)
    rows_BKV = jax.lax.broadcasted_iota(jnp.int32, shape_BKV, 0)
    return jnp.where(trie.alive(children_BKV, live), log_c_BX[rows_BKV, children_BKV], -jnp.inf)


def _learned(trie: Trie, live: Live | None, log_c_BX: jax.Array, path: _Path) -> jax.Array:
    """c of the nodes of all paths, the deepest first, each from its children's."""
    rows_BK = jax.lax.broadcasted_iota(jnp.int32, path.log_q_BK.shape, 0)

    def at_depth(log_c_BX: jax.Array, met: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        nodes_BK, log_p_BKV = met
        sums_BK = jax.nn.logsumexp(log_p_BKV + _log_c(trie, live, log_c_BX, nodes_BK), axis=-1)
        places_BK = jnp.where(nodes_BK == NONE, log_c_BX.shape[1], nodes_BK)
        return log_c_BX.at[rows_BK, places_BK].set(sums_BK, mode="drop"), None

    by_depth = jnp.moveaxis(path.nodes_BKT, 2, 0), jnp.moveaxis(path.log_p_BKTV, 2, 0)
    return jax.lax.scan(at_depth, log_c_BX, by_depth, reverse=True)[0]
