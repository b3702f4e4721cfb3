"""The soft mixture of experts: experts see averages of tokens, and nothing is chosen or dropped.

    X = rows of norm 1,  Phi = scale * columns of norm 1,  logits = X Phi   [S, E P]
    D = softmax over tokens,  C = softmax over slots,  y = C experts(D^T x)

What a token gets depends on all tokens of its group, later ones too.

Dimensions: B batch, L length, G groups, S tokens of a group, D model width, E experts, P slots of an expert.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe import groups
from moe.dispatch import Buffers
from moe.feed_forward import Aux, Carry, Context, nothing_carried
from moe.leakage import GROUP, Dependence, in_groups


class Soft(nn.Module):
    """A slot gets a mean of tokens, and a token a mean of the slots' outputs, with weights of one matrix of
    logits.

    Puigcerver et al. (2024), "From Sparse to Soft Mixtures of Experts". As there, tokens and the columns of
    Phi are brought to norm 1, and one learned scale, which starts from 1, stands for the norms. Padding has
    no part in any slot, and its output is zero. Logits and weights are float32.

    Attributes:
      num_experts: E.
      experts: `(rows, *, train) -> rows`; see `moe.experts`.
      slots: P; each costs as much as a token with one expert.
      group_rows: sequences whose tokens are mixed; None for all of the batch.
    """

    num_experts: int
    experts: nn.Module
    slots: int = 1
    group_rows: int | None = 1

    initial_carry = nothing_carried

    @nn.nowrap
    def dependence(self, train: bool) -> Dependence:
        """See `moe.leakage`: slots are averages over a group."""
        del train
        return in_groups(GROUP, self.group_rows)

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context: Context, carry: Carry) -> tuple[jax.Array, Carry, Aux]:
        """Returns y of the shape and dtype of x, the carry as it came, and no sums: no expert is preferred.

        Raises:
          ValueError: num_experts or slots is not positive, or group_rows does not divide the batch.
        """
        for field in ("num_experts", "slots"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; allowed: an integer of at least 1")
        x_GSD, tokens = groups.group(x_BLD, context, self.group_rows)
        logits_GSEP = self._logits(x_GSD.astype(jnp.float32))
        valid_GS11 = tokens.valid[:, :, None, None]
        # A group of padding alone makes slots of zeros.
        dispatch_GSEP = jax.nn.softmax(logits_GSEP, axis=1, where=valid_GS11)
        combine_GSEP = jnp.where(valid_GS11, jax.nn.softmax(logits_GSEP, axis=(2, 3)), 0.0)

        rows = Buffers(jnp.einsum("gsep,gsd->gepd", dispatch_GSEP.astype(x_GSD.dtype), x_GSD))
        values = self.experts(rows, train=context.train).values
        y_GSD = jnp.einsum("gsep,gepd->gsd", combine_GSEP, values.astype(jnp.float32))
        return y_GSD.astype(x_BLD.dtype).reshape(x_BLD.shape), carry, {}

    def _logits(self, x_GSD: jax.Array) -> jax.Array:
        """Float32 [G, S, E, P]."""
        shape = (x_GSD.shape[-1], self.num_experts, self.slots)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2))
        phi_DEP = self.param("phi", init, shape)
        scale = self.param("scale", nn.initializers.ones_init(), ())
        return jnp.einsum(
            "gsd,dep->gsep",
            _normalized(x_GSD, axis=-1),
            scale * _normalized(phi_DEP, axis=0),
            precision=jax.lax.Precision.HIGHEST,
        )


def _normalized(x: jax.Array, axis: int) -> jax.Array:
    """x with norm 1 along the axis; a vector of zeros stays as it is."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis, keepdims=True) + 1e-6)
