"""Blocks: how attention, feed-forward and norms are wired into one layer of an encoder.

Every block has the shape `(x [B, L, D], context, carry, *, visible, bias) -> (x, carry, aux)`, so that
encoders scan over any of them; `carry` and `aux` are those of the feed-forward contract (see
`moe.feed_forward`). Blocks of a decoder are in `backbones.decoder_blocks`.

Dimensions: B batch, L length, D model width.
"""

import jax
from flax import linen as nn

from backbones import norms
from moe.feed_forward import Aux, Carry, Context


class Block(nn.Module):
    """The parts of a layer, for `PreNorm` and `PostNorm` to wire.

    The modules given are templates: unbound, and made into this block's own children. `norm` is copied twice,
    into `attention_norm` and `feed_forward_norm`.

    Attributes:
      attention: `(x, context, *, visible, bias) -> y`.
      feed_forward: `(x, context, carry) -> (y, carry, aux)`.
      norm: `x -> y`.
      dropout: rate of dropout on what each half adds to x.
    """

    attention: nn.Module
    feed_forward: nn.Module
    norm: nn.Module = norms.RMSNorm()
    dropout: float = 0.0

    def setup(self):
        self.attention_norm = self.norm.clone(name=None)
        self.feed_forward_norm = self.norm.clone(name=None)
        self.drop = nn.Dropout(self.dropout)

    @nn.nowrap
    def initial_carry(self, x_BLD: jax.Array, context: Context) -> Carry:
        """What enters the first layer: the feed-forward's."""
        return self.feed_forward.initial_carry(x_BLD, context)


class PreNorm(Block):
    """x + attention(norm(x)), then x + feed_forward(norm(x)). Xiong et al. (2020), "On Layer Normalization in
    the Transformer Architecture". Fields as in `Block`."""

    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        carry: Carry,
        *,
        visible: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry, Aux]:
        """Returns x of the same shape and dtype, the carry for the next layer, and the sums."""
        off = not context.train
        y_BLD = self.attention(self.attention_norm(x_BLD), context, visible=visible, bias=bias)
        x_BLD = x_BLD + self.drop(y_BLD, deterministic=off)
        y_BLD, carry, aux = self.feed_forward(self.feed_forward_norm(x_BLD), context, carry)
        return x_BLD + self.drop(y_BLD, deterministic=off), carry, aux


class PostNorm(Block):
    """norm(x + attention(x)), then norm(x + feed_forward(x)). Vaswani et al. (2017), "Attention Is All You
    Need"; Devlin et al. (2019), "BERT". Fields as in `Block`.

    What comes out is normalized, so the encoder's own `norm` is None. Both papers use `norms.LayerNorm`.
    """

    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        carry: Carry,
        *,
        visible: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry, Aux]:
        """Returns x of the same shape and dtype, the carry for the next layer, and the sums."""
        off = not context.train
        y_BLD = self.attention(x_BLD, context, visible=visible, bias=bias)
        x_BLD = self.attention_norm(x_BLD + self.drop(y_BLD, deterministic=off))
        y_BLD, carry, aux = self.feed_forward(x_BLD, context, carry)
        return self.feed_forward_norm(x_BLD + self.drop(y_BLD, deterministic=off)), carry, aux
