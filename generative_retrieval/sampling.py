"""Sampling docids by plain masking, and the walk down the trie that all samplers share.

At each step the symbols that lead to no document are masked, and one of the others is drawn by the model's
probabilities renormalized over them ("locally constrained decoding"). Every sample is a live docid, but not
with the model's probability of it given that it is one: a beginning that the model likes is taken even if
almost nothing that the model would write behind it is a docid. `asap`, and `smc` with the weights of
`rejection`, keep the model's distribution; see docs/constrained_decoding.md.

Letters: B queries, K particles (samples of a query that are spelled side by side), V symbols.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from generative_retrieval import speller as spellers
from generative_retrieval.docids import NONE
from generative_retrieval.speller import Speller
from generative_retrieval.trie import ROOT, Live, Trie

State = TypeVar("State")


@struct.dataclass
class Samples:
    """Documents that were drawn for each query.

    With `log_p - log_q` as the logarithm of a sample's weight they are importance samples of the model's
    distribution over live docids.

    Attributes:
      documents_BK: int32, rows of the documents; -1 where a query has no live document.
      log_p_BK: float32, the model's own log-probability of the id: its symbols among all symbols.
      log_q_BK: float32, the log-probability with which the sampler drew it.
    """

    documents_BK: jax.Array
    log_p_BK: jax.Array
    log_q_BK: jax.Array


@struct.dataclass
class Particles:
    """What is being spelled at one depth.

    Attributes:
      depth: int32 [], symbols of the ids so far.
      nodes_BK: int32, where each particle is in the trie; a leaf once its id has ended, -1 for a lost one.
      going_BK: bool, whether it is still being spelled.
      log_p_BKV: float32, the model's log-probability of each next symbol, among all symbols.
    """

    depth: jax.Array
    nodes_BK: jax.Array
    going_BK: jax.Array
    log_p_BKV: jax.Array


@dataclasses.dataclass(frozen=True)
class Move:
    """Where particles go from one depth.

    Attributes:
      nodes_BK: int32, where each is now; where it was if it was not going, -1 if no symbol leads on.
      parents_BK: int32, the particle that each descends from, its own number unless it was resampled.
      state: what the sampler keeps of each particle, already that of its parent.
    """

    nodes_BK: jax.Array
    parents_BK: jax.Array
    state: Any


def keys(seed: int, rows_B: np.ndarray) -> jax.Array:
    """A random key for each query, so that what is drawn for it depends on its row alone.

    Args:
      seed: of all.
      rows_B: integers, numbers of the queries, such as their rows among all queries.
    """
    rows_B = jnp.asarray(np.asarray(rows_B, np.uint32))
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows_B)


def sample(
    speller: Speller,
    trie: Trie,
    keys_B: jax.Array,
    *,
    particles: int,
    live: Live | None = None,
    temperature: float = 1.0,
) -> Samples:
    """Draws documents by plain masking. A pure function, to be traced by jax.jit.

    Args:
      speller: the model with its queries.
      trie: the docids.
      keys_B: see `keys`. The k-th sample of a query depends on its key and k alone.
      particles: K, samples of each query.
      live: which documents may be drawn; None for all.
      temperature: the logarithms of the probabilities are divided by it; below 1 is nearer to `greedy`.

    Raises:
      ValueError: particles is below 1, or the temperature not above 0.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; allowed: above 0 (`greedy` is its limit)")
    check_particles(particles)

    def perturbed(at: Particles, log_q_BKV: jax.Array) -> jax.Array:
        return log_q_BKV + gumbel(keys_B, at.depth, particles, trie.size)

    return _masked(speller, trie, particles, live, temperature, perturbed)


def greedy(speller: Speller, trie: Trie, *, live: Live | None = None) -> Samples:
    """Takes the likeliest of the symbols that lead on, step by step; a tie goes to the lower symbol.

    A pure function, to be traced by jax.jit. The result is that of a beam search with one beam; `log_q` is
    that of `sample`.

    Args:
      speller: the model with its queries.
      trie: the docids.
      live: which documents may be found; None for all.
    """
    return _masked(speller, trie, 1, live, 1.0, lambda at, log_q_BKV: log_q_BKV)


def _masked(speller, trie, particles, live, temperature, perturbed) -> Samples:
    def choose(at: Particles, state: tuple[jax.Array, jax.Array]) -> Move:
        allowed_BKV = trie.mask(at.nodes_BK, live)
        log_q_BKV = jax.nn.log_softmax(at.log_p_BKV / temperature, axis=-1, where=allowed_BKV)
        log_q_BKV = jnp.where(allowed_BKV, log_q_BKV, -jnp.inf)
        symbols_BK = jnp.argmax(perturbed(at, log_q_BKV), axis=-1).astype(jnp.int32)
        nodes_BK = going_on(trie, live, at, symbols_BK)
        log_p_BK, log_q_BK = state
        gained_p_BK, gained_q_BK = picked(at.log_p_BKV, symbols_BK), picked(log_q_BKV, symbols_BK)
        state = (
            log_p_BK + jnp.where(at.going_BK, gained_p_BK, 0.0),
            log_q_BK + jnp.where(at.going_BK, gained_q_BK, 0.0),
        )
        return Move(nodes_BK, own(nodes_BK), state)

    zeros_BK = jnp.zeros((speller.batch_size, particles), jnp.float32)
    nodes_BK, (log_p_BK, log_q_BK) = walk(speller, trie, particles, choose, (zeros_BK, zeros_BK))
    return samples(trie, nodes_BK, log_p_BK, log_q_BK)


def samples(trie: Trie, nodes_BK: jax.Array, log_p_BK: jax.Array, log_q_BK: jax.Array) -> Samples:
    """The documents that particles came to, and nothing where they were lost."""
    documents_BK = trie.document(nodes_BK)
    of_documents = lambda log_BK: jnp.where(documents_BK != NONE, log_BK, -jnp.inf)
    return Samples(documents_BK, of_documents(log_p_BK), of_documents(log_q_BK))


def walk(
    speller: Speller,
    trie: Trie,
    particles: int,
    choose: Callable[[Particles, State], Move],
    state: State,
) -> tuple[jax.Array, State]:
    """Spells ids side by side, from the first symbol to the end of the last id, in one loop on the device.

    Args:
      speller: the model with its queries.
      trie: the docids.
      particles: K, for each query.
      choose: takes particles of one depth on to the next; see `Move`.
      state: what the sampler keeps, before the first symbol: a pytree.

    Returns:
      int32 [B, K], the leaves of the trie that the particles came to, -1 for lost ones; and the last state.
    """
    logits_BV, cache = spellers.begin(speller, trie.length, particles)
    lineage_BKT = spellers.lineage(speller.batch_size, trie.length, particles)
    root_BK = jnp.full((speller.batch_size, particles), ROOT, jnp.int32)

    def grow(logits_BKV, depth, nodes_BK, lineage_BKT, state):
        log_p_BKV = jax.nn.log_softmax(logits_BKV.astype(jnp.float32), axis=-1)
        at = Particles(depth, nodes_BK, _going(trie, nodes_BK), log_p_BKV)
        move = choose(at, state)
        if trie.length > 1:
            lineage_BKT = spellers.descend(lineage_BKT, move.parents_BK, depth + 1)
        return depth + 1, move.nodes_BK, lineage_BKT, move.state

    def goes_on(carry):
        (depth, nodes_BK, *_), _ = carry
        return (depth < trie.length) & _going(trie, nodes_BK).any()

    def step(carry):
        (depth, nodes_BK, lineage_BKT, state), cache = carry
        seen_BKM = spellers.visible(lineage_BKT, depth)
        logits_BKV, cache = speller.step(trie.symbol(nodes_BK), depth, seen_BKM, cache)
        return grow(logits_BKV, depth, nodes_BK, lineage_BKT, state), cache

    logits_BKV = jnp.broadcast_to(logits_BV[:, None], (*root_BK.shape, logits_BV.shape[-1]))
    carry = grow(logits_BKV, jnp.zeros((), jnp.int32), root_BK, lineage_BKT, state), cache
    if trie.length > 1:
        carry = jax.lax.while_loop(goes_on, step, carry)
    (_, nodes_BK, _, state), _ = carry
    return nodes_BK, state


def check_particles(particles: int) -> None:
    """Raises ValueError where a number of particles is none."""
    if particles < 1:
        raise ValueError(f"particles is {particles}; allowed: 1 or more")


def _going(trie: Trie, nodes_BK: jax.Array) -> jax.Array:
    return (nodes_BK != NONE) & (trie.document(nodes_BK) == NONE)


def going_on(trie: Trie, live: Live | None, at: Particles, symbols_BK: jax.Array) -> jax.Array:
    """Where symbols lead particles that are going; -1 where that is nowhere, or to no live document."""
    children_BK = trie.child(at.nodes_BK, symbols_BK)
    children_BK = jnp.where(trie.alive(children_BK, live), children_BK, NONE)
    return jnp.where(at.going_BK, children_BK, at.nodes_BK)


def own(nodes_BK: jax.Array) -> jax.Array:
    """The parents of particles that were not resampled: each its own."""
    return jax.lax.broadcasted_iota(jnp.int32, nodes_BK.shape, 1)


def picked(values_BKV: jax.Array, symbols_BK: jax.Array) -> jax.Array:
    """The value of one symbol of each particle: [B, K]."""
    return jnp.take_along_axis(values_BKV, symbols_BK[:, :, None], axis=-1)[:, :, 0]


def gumbel(keys_B: jax.Array, depth: jax.Array, particles: int, size: int) -> jax.Array:
    """Gumbel noise for each particle and symbol at one depth: float32 [B, K, V]."""

    def of_particle(key, number):
        return jax.random.gumbel(jax.random.fold_in(key, number), (size,), jnp.float32)

    at_depth_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, depth)
    return jax.vmap(jax.vmap(of_particle, (None, 0)), (0, None))(at_depth_B, jnp.arange(particles))
