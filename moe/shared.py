"""A gate on the shared experts of a mixture.

Dimensions: B batch, L length, D model width.
"""

import jax
from flax import linen as nn

from moe.feed_forward import Aux, Carry, Context, check_no_sums, nothing_carried, project


class Weighted(nn.Module):
    """A feed-forward layer times a learned weight of each token, sigmoid(x w) with w [D, 1].

    The shared expert of Qwen Team (2024), "Qwen1.5-MoE: Matching 7B Model Performance with 1/3 Activated
    Parameters"; stands in the field `shared` of `moe.mixture.Mixture`.

    Attributes:
      layer: a feed-forward layer that carries nothing and reports nothing, such as `moe.feed_forward.Gated`.
    """

    layer: nn.Module

    initial_carry = nothing_carried

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context: Context, carry: Carry) -> tuple[jax.Array, Carry, Aux]:
        """Returns y of the shape and dtype of x, the carry as it came, and no sums."""
        weight_BL1 = jax.nn.sigmoid(project(1, x_BLD, False, "weight"))
        y_BLD, _, aux = self.layer(x_BLD, context, ())
        check_no_sums(aux, "layer")
        return weight_BL1 * y_BLD, carry, {}
