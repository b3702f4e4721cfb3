"""Attention in two steps, so that a decoder can keep keys and values: first they are made, then queries look
at them. Self-attention and cross-attention are the same module, given keys and values of the decoder or of
an encoder's output. Parameters are those of `attention.SelfAttention`.

Dimensions: B batch, L length of queries, M length of keys, D model width, H heads, G heads of keys and
values, d width of a head.
"""

from collections.abc import Callable

import jax
from flax import linen as nn

from backbones.attention import attend, key_shape, merge_heads, split_heads
from backbones.cache import KeysValues
from moe.feed_forward import Context
from training.activations import named


class CachedAttention(nn.Module):
    """Multi-head attention over given keys and values (Vaswani et al., 2017).

    Attributes:
      rotate: as in `attention.SelfAttention`; cross-attention allows None alone.
      heads, use_bias, dropout, key_value_heads, head_width, head_norm, scale, out_bias: as in
        `attention.SelfAttention`.
    """

    heads: int
    rotate: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    use_bias: bool = False
    dropout: float = 0.0
    key_value_heads: int | None = None
    head_width: int | None = None
    head_norm: nn.Module | None = None
    scale: float | None = None
    out_bias: bool | None = None

    def setup(self):
        self.query, self.key, self.value = (Product(self.use_bias) for _ in range(3))
        self.out = Product(self.use_bias if self.out_bias is None else self.out_bias)
        if self.head_norm is not None:
            self.query_norm, self.key_norm = (self.head_norm.clone(name=None) for _ in range(2))
        self.drop = nn.Dropout(self.dropout)

    @nn.nowrap
    def key_shape(self, width: int) -> tuple[int, int]:
        """(G, d) of a model of the given width; see `attention.key_shape`."""
        return key_shape(width, self.heads, self.key_value_heads, self.head_width)

    def keys_values(self, x_BMD: jax.Array, positions: jax.Array | None = None) -> KeysValues:
        """Keys and values [B, G, M, d] of a sequence, the keys turned by `positions` where there is `rotate`.

        Raises:
          ValueError: see `attention.key_shape`; or there is `rotate` and no positions, as in cross-attention.
        """
        groups, width = self.key_shape(x_BMD.shape[-1])
        keys, values = (
            named(split_heads(side(x_BMD, groups * width), groups), "heads")
            for side in (self.key, self.value)
        )
        if self.head_norm is not None:
            keys = self.key_norm(keys)
        if self.rotate is not None:
            if positions is None:
                raise ValueError(f"rotate is {self.rotate}; allowed in cross-attention: None")
            keys = self.rotate(keys, positions)
        return KeysValues(keys, values)

    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        seen: KeysValues,
        *,
        visible: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Returns [B, L, D] in the dtype of x; `context` is that of the queries, `visible` and `bias` as in
        `attention.attend`.

        Raises:
          ValueError: the keys are those of another model width.
        """
        _, width = self.key_shape(x_BLD.shape[-1])
        queries = named(split_heads(self.query(x_BLD, self.heads * width), self.heads), "heads")
        if queries.shape[-1] != seen.keys.shape[-1]:
            raise ValueError(
                f"keys are {seen.keys.shape[-1]} wide a head; allowed: {queries.shape[-1]}, the model width "
                f"{x_BLD.shape[-1]} / heads; an encoder and its decoder have one model width"
            )
        if self.head_norm is not None:
            queries = self.query_norm(queries)
        if self.rotate is not None:
            queries = self.rotate(queries, context.positions)
        drop = lambda weights: self.drop(weights, deterministic=not context.train)
        mixed_BHLd = attend(
            queries, seen.keys, seen.values, visible=visible, bias=bias, scale=self.scale, drop=drop
        )
        return self.out(merge_heads(mixed_BHLd), x_BLD.shape[-1])


class Product(nn.Module):
    """A product with a kernel [width of what comes in, features], in the dtype of x."""

    use_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array, features: int) -> jax.Array:
        dense = nn.Dense(features, use_bias=self.use_bias, dtype=x.dtype)
        nn.share_scope(self, dense)  # parameters directly under this module's name
        y = dense(x.reshape(-1, x.shape[-1]))  # one axis, as in `feed_forward.project`
        return y.reshape(*x.shape[:-1], features)
