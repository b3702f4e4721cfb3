"""How a model knows where a token stands: added to its embedding, or turned into its queries and keys.

Two places take a position component; they are independent:

* `TransformerEncoder.position`, a module `(x [B, L, D], context) -> x`, after the embedding;
* `SelfAttention.rotate`, a function `(x [B, H, L, d], positions [B or 1, L]) -> x`, on queries and keys.

A third, the bias of T5 on the scores, is in `backbones.relative`.

Dimensions: B batch, L length, D model width, H heads, d width of a head.
"""

import math
from collections.abc import Callable

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
      first: the row of position 0; the rows before it are never read (RoBERTa's table has two).
    """

    max_length: int
    first: int = 0

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context: Context) -> jax.Array:
        """Returns x plus the vectors of `context.positions`, in the dtype of x."""
        length, width = x_BLD.shape[1:]
        if length > self.max_length:
            raise ValueError(f"input of length {length}; allowed: at most max_length = {self.max_length}")
        init = nn.initializers.variance_scaling(1.0, "fan_out", "truncated_normal")
        table_PD = self.param("table", init, (self.first + self.max_length, width), jnp.float32)
        rows_BL = jnp.where(context.positions < 0, -1, context.positions + self.first)
        added = table_PD.at[rows_BL].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return x_BLD + added.astype(x_BLD.dtype)


class LearnedSegments(nn.Module):
    """Adds one learned vector per segment (such as title and text), as BERT does (Devlin et al., 2019).

    The table starts like that of `LearnedPositions`. Prefix vectors, which have no segment (-1), get nothing.

    Attributes:
      num_segments: how many there are; a larger entry in `context.segments` gives NaN.
      always: the one segment that every token is of, whatever the batch says; None reads the batch.
    """

    num_segments: int
    always: int | None = None

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context: Context) -> jax.Array:
        """Returns x plus the vectors of `context.segments`, in the dtype of x.

        Raises:
          ValueError: the context has no segments and there is no `always`, num_segments is not positive, or
            `always` is not below it.
        """
        if self.num_segments < 1:
            raise ValueError(f"num_segments is {self.num_segments}; allowed: an integer of at least 1")
        if self.always is not None and not 0 <= self.always < self.num_segments:
            raise ValueError(f"always is {self.always}; allowed: 0 to {self.num_segments - 1}, or None")
        if self.always is not None:
            prefix_BL = jnp.zeros_like(context.valid) if context.tokens is None else context.tokens == -1
            segments_BL = jnp.where(prefix_BL, -1, self.always)
        elif context.segments is None:
            raise ValueError("the batch has no 'segments'; allowed with LearnedSegments: int [B, L]")
        else:
            segments_BL = context.segments
        init = nn.initializers.variance_scaling(1.0, "fan_out", "truncated_normal")
        table_SD = self.param("table", init, (self.num_segments, x_BLD.shape[-1]), jnp.float32)
        none_BL = segments_BL == -1
        added = table_SD.at[jnp.where(none_BL, 0, segments_BL)].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )
        return x_BLD + jnp.where(none_BL[:, :, None], 0, added).astype(x_BLD.dtype)


class Normalized(nn.Module):
    """A norm after the embedding, in the place of a position component: BERT has one behind the sum of token,
    position and segment.

    Attributes:
      norm: `x -> x`, one of `backbones.norms`.
    """

    norm: nn.Module

    def __call__(self, x_BLD: jax.Array, context: Context) -> jax.Array:
        """Returns the norm of x."""
        del context
        return self.norm(x_BLD)


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


def rotary(
    x_BHLd: jax.Array,
    positions_BL: jax.Array,
    *,
    base: float | jax.Array = 10_000.0,
    scaling: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Rotary positions: Su et al. (2021), "RoFormer: Enhanced Transformer with Rotary Position Embedding".

    Component i of the first half of a head and component i of its second half are turned, as a pair, by
    position * base^(-2 i / d), so that a query and a key meet at an angle that depends on their distance
    alone. The paper pairs neighbors (2i, 2i + 1); halves are the same up to a permutation of the weights,
    and cheaper.

    Args:
      x_BHLd: float queries or keys.
      positions_BL: int32 [B, L] or [1, L].
      base: the longest wavelength is 2 pi base.
      scaling: frequencies float32 [d / 2] to those that are used, for texts longer than those that were
        trained on: `slower` or `slower_when_long`; None leaves them.

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
    if scaling is not None:
        frequencies = scaling(frequencies)
    angles = positions_BL[:, None, :, None].astype(jnp.float32) * frequencies.reshape(1, 1, 1, -1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x_BHLd.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BHLd.dtype)


def slower(frequencies: jax.Array, *, factor: float) -> jax.Array:
    """All frequencies divided by `factor`: Chen et al. (2023), "Extending Context Window of Large Language
    Models via Positional Interpolation"; "linear" scaling in published configs."""
    return frequencies / factor


def slower_when_long(
    frequencies: jax.Array, *, factor: float, low: float, high: float, original_length: int
) -> jax.Array:
    """Divides low frequencies by `factor` and leaves high ones: Grattafiori et al. (2024), "The Llama 3 Herd
    of Models", from Llama 3.1; "llama3" scaling in published configs.

    A frequency turns original_length * frequency / (2 pi) times over the original length. One that turns
    fewer than `low` times is divided, one that turns more than `high` times is left, and in between the two
    are mixed in proportion.

    Args:
      frequencies: float32 [d / 2].
      factor: of the length.
      low: turns; less than `high`.
      high: turns.
      original_length: of the texts that were trained on first.
    """
    turns = original_length * frequencies / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * kept + frequencies / factor * (1 - kept)
