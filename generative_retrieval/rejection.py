"""Drawing a symbol by rejection: symbols are tried one by one, and only those are put to the constraint.

Lipkin et al. (2025), "Fast Controlled Generation from Language Models with Adaptive Weighted Rejection
Sampling". Masking asks the constraint about all V symbols; here the model's symbols are drawn without
replacement until one is accepted. The accepted symbol has the model's distribution over the accepted ones,
as with masking, and few symbols are asked about where the model agrees with the constraint.

What masking forgets is how much of the model's probability the constraint leaves at this step, its mass Z.
`weighted` estimates it, without bias and without asking about the rest of the vocabulary, from one more try:

    w = 1 - (probability of the rejected symbols)   if the next symbol behind the accepted one is accepted too
    w = p(the accepted symbol)                      if it is not, or if there is none

Given any rejected symbols and any accepted one, the mean of w is Z. With R the rejected probability, p the
accepted one's, the next symbol is accepted with probability (Z - p) / (1 - R - p), and

    (1 - R) (Z - p) / (1 - R - p) + p (1 - R - Z) / (1 - R - p) = Z.

So the symbol with the weight w is a proper importance sample of the model's distribution cut to the
constraint, which `smc` builds on. This is the paper's estimator in the form that its authors' library calls
recursive. Their other one, which counts the tries of further accepted symbols, is not here.

Letters: B queries, K particles, V symbols.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

Accepts = Callable[[jax.Array], jax.Array]


class Drawn(NamedTuple):
    """One symbol for each particle.

    Attributes:
      symbols_BK: int32; where all are rejected, any.
      log_weights_BK: float32; -inf where all are rejected.
      evaluations_BK: int32, symbols that the constraint was asked about.
    """

    symbols_BK: jax.Array
    log_weights_BK: jax.Array
    evaluations_BK: jax.Array


class Draw(Protocol):
    """`weighted`, or what stands in its place."""

    def __call__(self, log_p_BKV: jax.Array, noise_BKV: jax.Array, accepts: Accepts) -> Drawn:
        """Draws a symbol for each particle; see `weighted`."""


class _Tries(NamedTuple):
    """Attributes:
    keys_BKV: float32; -inf for symbols that were tried. The largest is the next to be tried.
    symbols_BK: int32, tried last.
    accepted_BK: bool, whether that was accepted.
    evaluations_BK: int32.
    """

    keys_BKV: jax.Array
    symbols_BK: jax.Array
    accepted_BK: jax.Array
    evaluations_BK: jax.Array

    @property
    def left_BK(self) -> jax.Array:
        """bool, whether there are symbols that were not tried."""
        return jnp.isfinite(self.keys_BKV).any(axis=-1)

    @property
    def next_BK(self) -> jax.Array:
        """int32, the symbol that would be tried next."""
        return jnp.argmax(self.keys_BKV, axis=-1).astype(jnp.int32)


def weighted(log_p_BKV: jax.Array, noise_BKV: jax.Array, accepts: Accepts) -> Drawn:
    """Adaptive weighted rejection sampling: a symbol, and an unbiased estimate of the accepted mass.

    Args:
      log_p_BKV: float32, log-probabilities of the symbols.
      noise_BKV: float32, independent standard Gumbel noise: symbols in the descending order of the sums of
        both are symbols drawn without replacement.
      accepts: `int32 [B, K] -> bool [B, K]`, the constraint, of one symbol of each particle.
    """
    tries = _until_accepted(log_p_BKV, noise_BKV, accepts)
    log_accepted_BK = jnp.take_along_axis(log_p_BKV, tries.symbols_BK[:, :, None], axis=-1)[:, :, 0]
    log_behind_BK = jax.nn.logsumexp(log_p_BKV, axis=-1, where=jnp.isfinite(tries.keys_BKV))
    next_too_BK = tries.left_BK & accepts(tries.next_BK)
    log_weights_BK = jnp.where(next_too_BK, jnp.logaddexp(log_accepted_BK, log_behind_BK), log_accepted_BK)
    return Drawn(
        tries.symbols_BK,
        jnp.where(tries.accepted_BK, log_weights_BK, -jnp.inf),
        tries.evaluations_BK + (tries.accepted_BK & tries.left_BK),
    )


def unweighted(log_p_BKV: jax.Array, noise_BKV: jax.Array, accepts: Accepts) -> Drawn:
    """Rejection sampling without replacement and without weights: the distribution of plain masking.

    The arguments are those of `weighted`. All weights are 1, or 0 where nothing was accepted.
    """
    tries = _until_accepted(log_p_BKV, noise_BKV, accepts)
    return Drawn(tries.symbols_BK, jnp.where(tries.accepted_BK, 0.0, -jnp.inf), tries.evaluations_BK)


def _until_accepted(log_p_BKV: jax.Array, noise_BKV: jax.Array, accepts: Accepts) -> _Tries:
    def going(tries: _Tries) -> jax.Array:
        return ~tries.accepted_BK & tries.left_BK

    def attempt(tries: _Tries) -> _Tries:
        going_BK, next_BK = going(tries), tries.next_BK
        symbols_BKV = jax.lax.broadcasted_iota(jnp.int32, log_p_BKV.shape, 2)
        tried_BKV = going_BK[:, :, None] & (symbols_BKV == next_BK[:, :, None])
        return _Tries(
            keys_BKV=jnp.where(tried_BKV, -jnp.inf, tries.keys_BKV),
            symbols_BK=jnp.where(going_BK, next_BK, tries.symbols_BK),
            accepted_BK=tries.accepted_BK | (going_BK & accepts(next_BK)),
            evaluations_BK=tries.evaluations_BK + going_BK,
        )

    zeros_BK = jnp.zeros(log_p_BKV.shape[:2], jnp.int32)
    first = _Tries(log_p_BKV + noise_BKV, zeros_BK, zeros_BK > 0, zeros_BK)
    return jax.lax.while_loop(lambda tries: going(tries).any(), attempt, first)
