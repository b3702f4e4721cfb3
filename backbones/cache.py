"""What a decoder keeps from call to call: keys and values of all layers, and which slots hold what.

The cache is a pytree of fixed shapes that goes into `TransformerDecoder.step` and comes out of it, so it can
be the carry of a `jax.lax.scan` or `while_loop`. Every leaf has layers on axis 0 (1 where all share it) and
the batch on axis 1.

Dimensions: Y layers, B batch, H heads, M slots, S length of the encoder's output, d width of a head, L new
positions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from moe.feed_forward import Context


@struct.dataclass
class KeysValues:
    """Keys and values of one layer, [B, H, M, d] each, or of all layers with Y before."""

    keys: jax.Array
    values: jax.Array

    def write(self, new: "KeysValues", start: jax.Array) -> "KeysValues":
        """With `new` in the slots from `start`, int32 []."""
        return jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=-2),
            self,
            new,
        )


@struct.dataclass
class Cache:
    """The state of incremental decoding. All rows have taken the same number of slots; a row that had nothing
    to say in a call (its mask was False) holds slots that are not valid.

    Attributes:
      own: self-attention, [Y, B, H, M, d].
      source: cross-attention, [Y, B, H, S, d], or None for a decoder without it.
      source_mask: bool [1, B, S], or None.
      valid: bool [1, B, M].
      positions: int32 [1, B, M].
      segments: int32 [1, B, M]; 0 where the batches had none.
      taken: int32 [1, B], how many slots are taken; more than M where they ran out.
    """

    own: KeysValues
    source: KeysValues | None
    source_mask: jax.Array | None
    valid: jax.Array
    positions: jax.Array
    segments: jax.Array
    taken: jax.Array

    @property
    def start(self) -> jax.Array:
        """The next free slot, int32 []."""
        return self.taken[0, 0]

    @property
    def overflown(self) -> jax.Array:
        """Whether more positions were written than there are slots, bool []."""
        return self.start > self.valid.shape[-1]


def empty(
    num_layers: int,
    batch_size: int,
    heads: int,
    max_length: int,
    width: int,
    dtype: jnp.dtype,
    source: KeysValues | None = None,
    source_mask: jax.Array | None = None,
) -> Cache:
    """A cache with all slots free; `width` is that of a head, `source_mask` is [B, S].

    Raises:
      ValueError: batch_size or max_length is not positive.
    """
    for field, value in (("batch_size", batch_size), ("max_length", max_length)):
        if value < 1:
            raise ValueError(f"{field} is {value}; allowed: an integer of at least 1")
    own_YBHMd = jnp.zeros((num_layers, batch_size, heads, max_length, width), dtype)
    numbers_1BM = jnp.zeros((1, batch_size, max_length), jnp.int32)
    return Cache(
        own=KeysValues(own_YBHMd, own_YBHMd),
        source=source,
        source_mask=None if source_mask is None else source_mask[None],
        valid=numbers_1BM.astype(bool),
        positions=numbers_1BM,
        segments=numbers_1BM,
        taken=numbers_1BM[:, :, 0],
    )


def next_positions(cache: Cache, valid_BL: jax.Array) -> jax.Array:
    """The positions of new tokens that count on from the valid ones of their row: int32 [B, L]."""
    before_B1 = jnp.sum(cache.valid[0], axis=1, keepdims=True, dtype=jnp.int32)
    return before_B1 + jnp.cumsum(valid_BL, axis=1, dtype=jnp.int32) - valid_BL


def admit(cache: Cache, context: Context) -> tuple[Cache, Context]:
    """Takes slots for new positions.

    Args:
      cache: what is held.
      context: of the new positions, [B, L].

    Returns:
      The cache with their validity, positions and segments, but not yet their keys and values; and the
      context of all slots, [B, M], with segments only if the new positions have them.

    Raises:
      ValueError: there are more new positions than slots, or the batch is of another size.
    """
    batch_size, slots = cache.valid.shape[1:]
    if context.valid.shape[0] != batch_size or context.valid.shape[1] > slots:
        raise ValueError(
            f"tokens have shape {context.valid.shape}; allowed with this cache: [{batch_size}, up to {slots}]"
        )

    def put(held_1BM, new_BL):
        new_1BL = jnp.broadcast_to(new_BL, context.valid.shape)[None].astype(held_1BM.dtype)
        return jax.lax.dynamic_update_slice_in_dim(held_1BM, new_1BL, cache.start, axis=2)

    length = context.valid.shape[1]
    segments = jnp.zeros_like(context.valid) if context.segments is None else context.segments
    held = cache.replace(
        valid=put(cache.valid, context.valid),
        positions=put(cache.positions, context.positions),
        segments=put(cache.segments, segments),
        taken=cache.taken + length,
    )
    slots = Context(
        valid=held.valid[0],
        positions=held.positions[0],
        segments=None if context.segments is None else held.segments[0],
    )
    return held, slots


def by_block(tree: Any, layers: int | None) -> Any:
    """Cuts the layers on axis 0 into blocks of `layers`, [Y / n, n, ...]; None leaves them."""
    return tree if layers is None else jax.tree.map(lambda x: x.reshape(-1, layers, *x.shape[1:]), tree)


def by_layer(tree: Any, layers: int | None) -> Any:
    """The opposite of `by_block`."""
    return tree if layers is None else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def reorder(cache: Cache, rows: jax.Array) -> Cache:
    """The cache whose row i is the old row rows[i]: how beams move, and how one row becomes several.

    Args:
      cache: of B rows.
      rows: int32 [N], from 0 to B - 1; others give NaN.

    Returns:
      A cache of N rows.
    """
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=1), cache)
