"""Layers of two kinds in one stack: every n-th sees all of a text, the others what is near.

Both kinds have the same parameters, so the loop over layers stays one loop with one body: which kind a layer
is follows from its number, which is part of what layers hand on. A stack need not be a whole number of
periods.

Dimensions: B batch, L length, D model width, H heads, M length of keys.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from backbones import masks, positions
from backbones.blocks import Block
from moe.feed_forward import Aux, Carry, Context


class AlternatingPreNorm(Block):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); Warner et al. (2024), "Smarter, Better, Faster,
    Longer: A Modern Bidirectional Encoder", "ModernBERT".

    Layers 0, n, 2n, ... are wide: every position sees every other, and positions are rotated with `base`. The
    others are local: a position sees `window` positions on either side, rotated with `local_base`. Before the
    attention of layer 0 there is no norm, for the embedding has one; its scale is never read.

    Attributes (and those of `blocks.Block`; `attention` is `attention.SelfAttention` without `rotate`):
      every: n.
      window: of local layers, in positions on either side.
      base: of wide layers; see `positions.rotary`.
      local_base: of local layers.
    """

    every: int = 3
    window: int = 64
    base: float = 160_000.0
    local_base: float = 10_000.0

    @nn.nowrap
    def initial_carry(self, x_BLD: jax.Array, context: Context) -> Carry:
        """The number of the layer, int32 [], and what enters the first feed-forward layer."""
        return jnp.zeros((), jnp.int32), super().initial_carry(x_BLD, context)

    def setup(self):
        super().setup()
        if self.every < 1:
            raise ValueError(f"every is {self.every}; allowed: an integer of at least 1")
        if self.window < 0:
            raise ValueError(f"window is {self.window}; allowed: an integer of at least 0")
        if self.attention.rotate is not None:
            raise ValueError(
                f"attention has rotate = {self.attention.rotate}; allowed: None, base and local_base say how"
            )

    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        carry: Carry,
        *,
        visible: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry, Aux]:
        """Returns x of the same shape and dtype, the carry for the next layer, and the sums.

        Raises:
          ValueError: every is not positive, window is negative, or attention has a rotation of its own.
        """
        number, carry = carry
        wide = number % self.every == 0
        seen_11LM = masks.near(x_BLD.shape[1], before=self.window, after=self.window) | wide
        visible = seen_11LM if visible is None else visible & seen_11LM
        rotate = functools.partial(positions.rotary, base=jnp.where(wide, self.base, self.local_base))
        off = not context.train
        y_BLD = jnp.where(number == 0, x_BLD, self.attention_norm(x_BLD))
        y_BLD = self.attention(y_BLD, context, visible=visible, bias=bias, rotate=rotate)
        x_BLD = x_BLD + self.drop(y_BLD, deterministic=off)
        y_BLD, carry, aux = self.feed_forward(self.feed_forward_norm(x_BLD), context, carry)
        return x_BLD + self.drop(y_BLD, deterministic=off), (number + 1, carry), aux
