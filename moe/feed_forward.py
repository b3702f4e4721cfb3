"""The feed-forward contract that every layer shares, and its dense forms.

    (x [B, L, D], context, carry) -> (y [B, L, D], carry, aux)

A block knows only this, so a dense layer, a mixture of experts, a product-key memory or a chained layer can
stand in the same place. What the three extra values are:

* `context` (`Context`): what a layer may look at besides x. It is the same for all layers of one call.
* `carry`: what one layer hands to the next (router state, a residual of logits), a pytree whose structure
  does not change from layer to layer. `initial_carry(x, context)` makes the one that enters the first layer;
  `()` where nothing is carried. It is `nn.nowrap`: a function of the layer's fields, without parameters,
  since it is called outside the loop over layers.
* `aux`: a dict of additive sums over tokens (expert counts, router z, ...), returned and never sown; `{}`
  where there is nothing to say. Encoders stack it over layers.

A layer in which what a token gets depends on other tokens has a method `dependence(train)`, see
`moe.leakage`; one without it treats each token alone.

Variables that no gradient trains (a router's bias) are in collections of their own, which the Task carries.

Random numbers come from linen's streams: `self.make_rng("dropout")` for dropout, `self.make_rng("router")`
for router noise and jitter. A stream is needed only where `context.train` is true and the layer draws from
it.

Compute happens in the dtype of x; parameters are float32 and are cast where they are used. Of the activation
the backward pass keeps the inputs alone and computes the rest again: it is bound by memory, not arithmetic.

Dimensions: B batch, L length, D model width, F feed-forward width.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from flax import struct

from training.activations import named

Carry = Any
Aux = dict[str, jax.Array]


@struct.dataclass
class Context:
    """What a layer may look at besides its input.

    Attributes:
      valid: bool [B, L]; False marks padding.
      tokens: int32 [B, L] token ids, or None; -1 where a position has none (a prefix vector).
      positions: int32 [B, L] or [1, L] positions counted from 0, or None.
      segments: int32 [B, L] segment ids (such as 0 title, 1 text), or None; -1 where a position has none.
      domains: int32 [B] domain of each example, or None.
      step: int32 [], the global training step, or None.
      train: whether dropout and router noise are on; static under jit.
    """

    valid: jax.Array
    tokens: jax.Array | None = None
    positions: jax.Array | None = None
    segments: jax.Array | None = None
    domains: jax.Array | None = None
    step: jax.Array | None = None
    train: bool = struct.field(pytree_node=False, default=False)


@nn.nowrap
def nothing_carried(self: nn.Module, x_BLD: jax.Array, context: Context) -> Carry:
    """The method `initial_carry` of a layer that carries nothing."""
    del self, x_BLD, context
    return ()


class Dense(nn.Module):
    """The two-layer perceptron of Vaswani et al. (2017), "Attention Is All You Need".

        y = activation(x W_in + b_in) W_out + b_out

    The default activation is GELU in its tanh form (Hendrycks and Gimpel, 2016, "Gaussian Error Linear
    Units"). Kernels start from a truncated normal with variance 1 / fan-in, biases from zero.

    Attributes:
      width: F.
      activation: elementwise function.
      use_bias: whether the two products have a bias.
      dropout: rate of dropout on the hidden layer.
    """

    width: int
    activation: Callable[[jax.Array], jax.Array] = nn.gelu
    use_bias: bool = False
    dropout: float = 0.0

    initial_carry = nothing_carried

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context: Context, carry: Carry) -> tuple[jax.Array, Carry, Aux]:
        """Returns y of the shape and dtype of x, the carry as it came, and no sums."""
        check_width(self.width)
        in_BLF = named(project(self.width, x_BLD, self.use_bias, "in"), "hidden")
        hidden_BLF = jax.checkpoint(self.activation)(in_BLF)
        hidden_BLF = nn.Dropout(self.dropout)(hidden_BLF, deterministic=not context.train)
        return project(x_BLD.shape[-1], hidden_BLF, self.use_bias, "out"), carry, {}


class Gated(nn.Module):
    """The gated perceptron of Shazeer (2020), "GLU Variants Improve Transformer"; SwiGLU as it stands.

        y = (activation(x W_gate) * (x W_in)) W_out

    It has 3 D F weights where `Dense` has 2 D F: a width of two thirds makes them equal.

    Attributes:
      width: F.
      activation: elementwise function of the gate; SiLU makes SwiGLU, GELU makes GEGLU.
      use_bias: whether the three products have a bias.
      dropout: rate of dropout on the hidden layer.
    """

    width: int
    activation: Callable[[jax.Array], jax.Array] = nn.silu
    use_bias: bool = False
    dropout: float = 0.0

    initial_carry = nothing_carried

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context: Context, carry: Carry) -> tuple[jax.Array, Carry, Aux]:
        """Returns y of the shape and dtype of x, the carry as it came, and no sums."""
        check_width(self.width)
        gate_BLF = named(project(self.width, x_BLD, self.use_bias, "gate"), "hidden")
        in_BLF = named(project(self.width, x_BLD, self.use_bias, "in"), "hidden")
        hidden_BLF = jax.checkpoint(lambda gate, x: self.activation(gate) * x)(gate_BLF, in_BLF)
        hidden_BLF = nn.Dropout(self.dropout)(hidden_BLF, deterministic=not context.train)
        return project(x_BLD.shape[-1], hidden_BLF, self.use_bias, "out"), carry, {}


def project(features: int, x: jax.Array, use_bias: bool, name: str) -> jax.Array:
    """x times a float32 kernel [D, features] named `name`, in the dtype of x; called inside `nn.compact`.

    The axes before the last are merged for the product: the gradient of the kernel then contracts one axis,
    where XLA on a CPU would first copy both arrays into another order.
    """
    rows = x.reshape(-1, x.shape[-1])
    y = nn.Dense(features, use_bias=use_bias, dtype=x.dtype, name=name)(rows)
    return y.reshape(*x.shape[:-1], features)


def check_no_sums(aux: Aux, what: str) -> None:
    """Raises ValueError if a layer that should be dense gives sums, which would be lost."""
    if aux:
        raise ValueError(f"{what} gives sums ({', '.join(aux)}); allowed: a layer that gives none")


def check_width(width: int) -> None:
    """Raises ValueError unless the feed-forward width is a positive integer."""
    if width < 1:
        raise ValueError(f"feed-forward width is {width}; allowed: an integer of at least 1")
