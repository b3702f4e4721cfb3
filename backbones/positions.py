"""How a model knows where a token stands: added to its embedding, or turned into its queries and keys.

Two places take a position component; they are independent:

* `TransformerEncoder.position`, a module `(x [B, L, D], context) -> x`, after the embedding;
* `SelfAttention.rotate`, a function `(x [B, H, L, d], positions [B or 1, L]) -> x`, on queries and keys.

A third, the bias of T5 on the scores, is in `backbones.relative`.

Dimensions: B batch, L length, D model width, H heads, d width of a head.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.feed_forward import Context


class LearnedPositions(nn.Module):
    """Adds one learned vector per absolute position, as BERT does (Devlin et al., 2019).

    The table starts from a truncated normal with variance 1 / D, like `TokenEmbedding`.

    Attributes:
      max_length: how many positions there are. A longer input raises ValueError; a larger entry in
        `context.positions`, which is not known at trace time, gives NaN.
    """

    max_length: int

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context: Context) -> jax.Array:
        """Returns x plus the vectors of `context.positions`, in the dtype of x."""
        length, width = x_BLD.shape[1:]
        if length > self.max_length:
            raise ValueError(f"input of length {length}; allowed: at most max_length = {self.max_length}")
        init = nn.initializers.variance_scaling(1.0, "fan_out", "truncated_normal")
        table_PD = self.param("table", init, (self.max_length, width), jnp.float32)
        added = table_PD.at[context.positions].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )
        return x_BLD + added.astype(x_BLD.dtype)


class LearnedSegments(nn.Module):
    """Adds one learned vector per segment (such as title and text), as BERT does (Devlin et al., 2019).

    The table starts like that of `LearnedPositions`. Prefix vectors, which have no segment (-1), get nothing.

    Attributes:
      num_segments: how many there are; a larger entry in `context.segments` gives NaN.
    """

    num_segments: int

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context: Context) -> jax.Array:
        """Returns x plus the vectors of `context.segments`, in the dtype of x.

        Raises:
          ValueError: the context has no segments, or num_segments is not positive.
        """
        if self.num_segments < 1:
            raise ValueError(f"num_segments is {self.num_segments}; allowed: an integer of at least 1")
        if context.segments is None:
            raise ValueError("the batch has no 'segments'; allowed with LearnedSegments: int [B, L]")
        init = nn.initializers.variance_scaling(1.0, "fan_out", "truncated_normal")
        table_SD = self.param("table", init, (self.num_segments, x_BLD.shape[-1]), jnp.float32)
        none_BL = context.segments == -1
        added = table_SD.at[jnp.where(none_BL, 0, context.segments)].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )
        return x_BLD + jnp.where(none_BL[:, :, None], 0, added).astype(x_BLD.dtype)


class InTurn(nn.Module):
    """Two components after the embedding, such as positions and segments, one after the other.

    Attributes:
      first: module `(x, context) -> x`.
      second: likewise.
    """

    first: nn.Module
    second: nn.Module

    def __call__(self, x_BLD: jax.Array, context: Context) -> jax.Array:
        """Returns what `second` makes of what `first` makes of x."""
        return self.second(self.first(x_BLD, context), context)


def rotary(x_BHLd: jax.Array, positions_BL: jax.Array, *, base: float = 10_000.0) -> jax.Array:
    """Rotary positions: Su et al. (2021), "RoFormer: Enhanced Transformer with Rotary Position Embedding".

    Component i of the first half of a head and component i of its second half are turned, as a pair, by
    position * base^(-2 i / d), so that a query and a key meet at an angle that depends on their distance
    alone. The paper pairs neighbors (2i, 2i + 1); halves are the same up to a permutation of the weights,
    and cheaper.

    Args:
      x_BHLd: float queries or keys.
      positions_BL: int32 [B, L] or [1, L].
      base: the longest wavelength is 2 pi base.

    Returns:
      x turned, of the same shape and dtype; the arithmetic is float32.

    Raises:
      ValueError: d is odd.
    """
    width = x_BHLd.shape[-1]
    if width % 2:
        raise ValueError(
            f"width of a head (model width / heads) is {width}; allowed with rotary positions: even"
        )
    frequencies = base ** (-jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
    angles = positions_BL[:, None, :, None].astype(jnp.float32) * frequencies.reshape(1, 1, 1, -1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x_BHLd.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BHLd.dtype)
