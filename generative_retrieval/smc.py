"""Sequential Monte Carlo over docids: samples with weights that follow the model's own distribution.

K particles spell ids side by side, their symbols drawn under the constraint by `rejection.weighted`. A
particle's weight is the product of the weights of its symbols, so those that the constraint led where the
model would rarely write a docid weigh little. Where a query's weights become uneven its particles are
resampled: light ones end, heavy ones go on several times over (Lipkin et al., 2025, "Fast Controlled
Generation from Language Models with Adaptive Weighted Rejection Sampling"; Gordon et al., 1993, "Novel
approach to nonlinear/non-Gaussian Bayesian state estimation"). As K grows, the weighted documents approach
the model's distribution given that the id is that of a live document.

Resampling moves nothing in the model's cache: only the table of who descends from whom is permuted.

Letters: B queries, K particles, V symbols.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from generative_retrieval import rejection, sampling
from generative_retrieval.docids import NONE
from generative_retrieval.sampling import Move, Particles
from generative_retrieval.speller import Speller
from generative_retrieval.trie import Live, Trie

Resample = Callable[[jax.Array, jax.Array], jax.Array]
_DRAWING, _RESAMPLING = 0, 1  # purposes of random numbers


@struct.dataclass
class Weighted:
    """Documents with weights, for each query.

    Attributes:
      documents_BK: int32, rows of the documents, which may come up several times; -1 where a query has no
        live document.
      log_weights_BK: float32; the weights of a query sum to 1, and a document's weights together estimate
        its probability.
      log_p_BK: float32, the model's own log-probability of each id: its symbols among all symbols.
      log_normalizer_B: float32, the logarithm of an unbiased estimate of how likely the model is to write the
        id of a live document at all.
      evaluations_B: int32, how often the constraint was asked about a symbol. Masking asks V times for
        every symbol of a particle.
    """

    documents_BK: jax.Array
    log_weights_BK: jax.Array
    log_p_BK: jax.Array
    log_normalizer_B: jax.Array
    evaluations_B: jax.Array


@struct.dataclass
class _State:
    """Attributes:
    log_weights_BK: float32, since the last resampling.
    log_p_BK: float32.
    log_normalizer_B: float32, up to the last resampling.
    evaluations_B: int32.
    """

    log_weights_BK: jax.Array
    log_p_BK: jax.Array
    log_normalizer_B: jax.Array
    evaluations_B: jax.Array


def systematic(key: jax.Array, log_weights_K: jax.Array) -> jax.Array:
    """Draws as many particles by weight with a single random number, evenly spaced: int32 [K].

    Every particle of weight w is drawn K w times, rounded up or down (Kitagawa, 1996, "Monte Carlo filter and
    smoother for non-Gaussian nonlinear state space models").

    Args:
      key: of one query.
      log_weights_K: float32, not all -inf; they need not be normalized.
    """
    count = log_weights_K.shape[0]
    offsets_K = (jnp.arange(count) + jax.random.uniform(key)) / count
    return _drawn(offsets_K, log_weights_K)


def multinomial(key: jax.Array, log_weights_K: jax.Array) -> jax.Array:
    """Draws as many particles by weight, each apart: int32 [K]; the arguments are those of `systematic`."""
    return _drawn(jax.random.uniform(key, log_weights_K.shape), log_weights_K)


def _drawn(offsets_K: jax.Array, log_weights_K: jax.Array) -> jax.Array:
    up_to_K = jnp.cumsum(jax.nn.softmax(log_weights_K))
    below = jnp.nextafter(up_to_K[-1], 0.0)  # rounding must not carry an offset behind the last particle
    places_K = jnp.searchsorted(up_to_K, jnp.minimum(offsets_K * up_to_K[-1], below), side="right")
    return places_K.astype(jnp.int32)


def sample(
    speller: Speller,
    trie: Trie,
    keys_B: jax.Array,
    *,
    particles: int,
    live: Live | None = None,
    draw: rejection.Draw = rejection.weighted,
    resample: Resample = systematic,
    threshold: float = 0.5,
) -> Weighted:
    """Draws weighted documents. A pure function, to be traced by jax.jit.

    Args:
      speller: the model with its queries.
      trie: the docids.
      keys_B: see `sampling.keys`.
      particles: K, for each query.
      live: which documents may be drawn; None for all.
      draw: how symbols are drawn. With `rejection.unweighted` all weights are alike, and the samples those
        of plain masking.
      resample: `systematic` or `multinomial`.
      threshold: a query's particles are resampled where their effective sample size, (sum w)^2 / sum w^2, is
        below this share of K; 0 for never.

    Raises:
      ValueError: particles is below 1, or the threshold not from 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; allowed: 0 to 1")
    sampling.check_particles(particles)
    purposes_B = jax.vmap(jax.random.split)(keys_B)

    def choose(at: Particles, state: _State) -> Move:
        noise_BKV = sampling.gumbel(purposes_B[:, _DRAWING], at.depth, particles, trie.size)

        def accepts(symbols_BK: jax.Array) -> jax.Array:
            return ~at.going_BK | trie.alive(trie.child(at.nodes_BK, symbols_BK), live)

        drawn = draw(at.log_p_BKV, noise_BKV, accepts)
        nodes_BK = sampling.going_on(trie, live, at, drawn.symbols_BK)
        gained_BK = sampling.picked(at.log_p_BKV, drawn.symbols_BK)
        state = state.replace(
            log_weights_BK=state.log_weights_BK + jnp.where(at.going_BK, drawn.log_weights_BK, 0.0),
            log_p_BK=state.log_p_BK + jnp.where(at.going_BK, gained_BK, 0.0),
            evaluations_B=state.evaluations_B + (drawn.evaluations_BK * at.going_BK).sum(axis=1),
        )
        return _resampled(trie, nodes_BK, state, at.depth)

    def _resampled(trie: Trie, nodes_BK: jax.Array, state: _State, depth: jax.Array) -> Move:
        log_weights_BK = state.log_weights_BK
        going_B = ((nodes_BK != NONE) & (trie.document(nodes_BK) == NONE)).any(axis=1)
        log_sum_B = jax.nn.logsumexp(log_weights_BK, axis=1)
        log_size_B = 2 * log_sum_B - jax.nn.logsumexp(2 * log_weights_BK, axis=1)
        uneven_B = going_B & (log_size_B < jnp.log(threshold * particles))
        now_B = jax.vmap(jax.random.fold_in, (0, None))(purposes_B[:, _RESAMPLING], depth)
        own_BK = sampling.own(nodes_BK)
        parents_BK = jnp.where(uneven_B[:, None], jax.vmap(resample)(now_B, log_weights_BK), own_BK)
        log_mean_B = log_sum_B - jnp.log(particles)
        state = state.replace(
            log_weights_BK=jnp.where(uneven_B[:, None], 0.0, log_weights_BK),
            log_p_BK=jnp.take_along_axis(state.log_p_BK, parents_BK, axis=1),
            log_normalizer_B=state.log_normalizer_B + jnp.where(uneven_B, log_mean_B, 0.0),
        )
        return Move(jnp.take_along_axis(nodes_BK, parents_BK, axis=1), parents_BK, state)

    zeros_BK = jnp.zeros((speller.batch_size, particles), jnp.float32)
    zeros_B = zeros_BK[:, 0]
    first = _State(zeros_BK, zeros_BK, zeros_B, zeros_B.astype(jnp.int32))
    nodes_BK, state = sampling.walk(speller, trie, particles, choose, first)
    log_sum_B = jax.nn.logsumexp(state.log_weights_BK, axis=1)
    there_BK = jnp.isfinite(state.log_weights_BK)
    return Weighted(
        documents_BK=jnp.where(there_BK, trie.document(nodes_BK), NONE),
        log_weights_BK=jnp.where(there_BK, state.log_weights_BK - log_sum_B[:, None], -jnp.inf),
        log_p_BK=jnp.where(there_BK, state.log_p_BK, -jnp.inf),
        log_normalizer_B=state.log_normalizer_B + log_sum_B - jnp.log(particles),
        evaluations_B=state.evaluations_B,
    )
