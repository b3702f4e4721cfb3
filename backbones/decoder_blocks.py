"""Blocks of a decoder: self-attention, cross-attention where there is an encoder, feed-forward.

Every block has the shape `(x [B, L, D], context, carry, memory, *, visible, bias) -> (x, carry, aux, own)`.
`memory` says what is seen besides x, `own` are the keys and values of self-attention, for the cache; the
rest is as in `backbones.blocks`.

Dimensions: B batch, L length, D model width, H heads, S length of the encoder's output.
"""

import jax
from flax import linen as nn
from flax import struct

from backbones.blocks import Block
from backbones.cache import KeysValues
from moe.feed_forward import Aux, Carry, Context


@struct.dataclass
class Memory:
    """What a layer sees besides its input.

    Attributes:
      own: keys and values of all slots, or None where the input is the whole text.
      start: int32 [], the slot of the first new position; None without `own`.
      source: keys and values of the encoder's output (see `DecoderBlock.read`), or None.
      source_visible: bool, broadcastable to [B, H, L, S] with four axes, or None.
    """

    own: KeysValues | None = None
    start: jax.Array | None = None
    source: KeysValues | None = None
    source_visible: jax.Array | None = None


class DecoderBlock(Block):
    """The parts of a decoder's layer, for `PreNorm` and `PostNorm` to wire: those of `blocks.Block`, and

    Attributes:
      attention: such as `cached_attention.CachedAttention`.
      cross_attention: likewise, or None for a decoder that stands alone; `norm` is copied a third time, into
        `cross_attention_norm`.
    """

    cross_attention: nn.Module | None = None

    def setup(self):
        super().setup()
        for field in ("attention", "cross_attention"):
            module = getattr(self, field)
            if module is not None and not hasattr(module, "keys_values"):
                raise ValueError(
                    f"{field} is {type(module).__name__}; allowed in a decoder: a module with keys_values, "
                    "such as cached_attention.CachedAttention"
                )
        if self.cross_attention is not None:
            self.cross_attention_norm = self.norm.clone(name=None)

    def read(self, last_BSD: jax.Array) -> KeysValues:
        """This layer's keys and values of an encoder's output, [B, H, S, d]."""
        return self.cross_attention.keys_values(last_BSD)

    def look(self, x_BLD, context, memory, visible, bias) -> tuple[jax.Array, KeysValues]:
        """Self-attention over what is kept and x; returns what it adds, and what is kept now."""
        own = self.attention.keys_values(x_BLD, context.positions)
        if memory.own is not None:
            own = memory.own.write(own, memory.start)
        return self.attention(x_BLD, context, own, visible=visible, bias=bias), own

    def look_across(self, x_BLD, context, memory) -> jax.Array:
        """What cross-attention adds."""
        return self.cross_attention(x_BLD, context, memory.source, visible=memory.source_visible)


class PreNorm(DecoderBlock):
    """x + part(norm(x)) for each part in turn. Xiong et al. (2020), "On Layer Normalization in the
    Transformer Architecture". Fields as in `DecoderBlock`."""

    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        carry: Carry,
        memory: Memory,
        *,
        visible: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry, Aux, KeysValues]:
        """Returns x of the same shape and dtype, the carry for the next layer, the sums, and `own`."""
        off = not context.train
        y_BLD, own = self.look(self.attention_norm(x_BLD), context, memory, visible, bias)
        x_BLD = x_BLD + self.drop(y_BLD, deterministic=off)
        if self.cross_attention is not None:
            y_BLD = self.look_across(self.cross_attention_norm(x_BLD), context, memory)
            x_BLD = x_BLD + self.drop(y_BLD, deterministic=off)
        y_BLD, carry, aux = self.feed_forward(self.feed_forward_norm(x_BLD), context, carry)
        return x_BLD + self.drop(y_BLD, deterministic=off), carry, aux, own


class PostNorm(DecoderBlock):
    """norm(x + part(x)) for each part in turn. Vaswani et al. (2017), "Attention Is All You Need". Fields as
    in `DecoderBlock`. What comes out is normalized, so the decoder's own `norm` is None."""

    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        carry: Carry,
        memory: Memory,
        *,
        visible: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry, Aux, KeysValues]:
        """Returns x of the same shape and dtype, the carry for the next layer, the sums, and `own`."""
        off = not context.train
        y_BLD, own = self.look(x_BLD, context, memory, visible, bias)
        x_BLD = self.attention_norm(x_BLD + self.drop(y_BLD, deterministic=off))
        if self.cross_attention is not None:
            y_BLD = self.look_across(x_BLD, context, memory)
            x_BLD = self.cross_attention_norm(x_BLD + self.drop(y_BLD, deterministic=off))
        y_BLD, carry, aux = self.feed_forward(x_BLD, context, carry)
        return self.feed_forward_norm(x_BLD + self.drop(y_BLD, deterministic=off)), carry, aux, own
