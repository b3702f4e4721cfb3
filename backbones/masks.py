"""Who sees whom: functions `context -> bool`, broadcastable to [B, H, L, M] with four axes, for `visible` of
an encoder or a decoder.

Every mask here hides padding. "Before" means the order of the array, not of `context.positions`, which start
anew in packed texts. `both` makes one mask of two:

    visible=dict(
        name="backbones.masks.both",
        first=dict(name="backbones.masks.causal"),
        second=dict(name="backbones.masks.segments"),
    )

Dimensions: B batch, H heads, L length of queries, M length of keys (here M = L).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.feed_forward import Context

Mask = Callable[[Context], jax.Array]


def padding(context: Context) -> jax.Array:
    """Every position sees every valid position: bool [B, 1, 1, M]."""
    return context.valid[:, None, None, :]


def causal(context: Context) -> jax.Array:
    """A position sees itself and those before it: bool [B, 1, L, M]."""
    return padding(context) & not_after(context.valid.shape[1])


def prefix_lm(context: Context) -> jax.Array:
    """The text sees all of its prefix, and otherwise only itself and what is before: bool [B, 1, L, M].

    Raffel et al. (2020), "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer";
    Dong et al. (2019), "Unified Language Model Pre-training", call it sequence-to-sequence. The prefix
    is segment 0 with all prefix vectors (segment -1), wherever it ends in each text; all other segments are
    written left to right.

    Raises:
      ValueError: the context has no segments.
    """
    prefix_BM = segment_ids(context, "prefix_lm") <= 0
    return padding(context) & (prefix_BM[:, None, None, :] | not_after(context.valid.shape[1]))


def segments(context: Context) -> jax.Array:
    """Texts packed into one row do not see each other: bool [B, 1, L, M].

    `segments` of the batch numbers the texts of a row (Raffel et al., 2020, pack this way); a position sees
    those of its own number. Prefix vectors (-1) are seen by all texts and see only themselves, or they would
    carry one text to the next. Give `positions` that count from 0 in each text.

    `prefix_lm` reads the same array as the kinds of one text, so the two do not go together.

    Raises:
      ValueError: the context has no segments.
    """
    ids_BL = segment_ids(context, "segments")
    queries_B1L1, keys_B11M = ids_BL[:, None, :, None], ids_BL[:, None, None, :]
    return padding(context) & ((queries_B1L1 == keys_B11M) | (keys_B11M == -1))


def window(context: Context, *, before: int, after: int) -> jax.Array:
    """A position sees itself, the `before` positions before it and the `after` positions after it, of those
    that are valid: bool [B, 1, L, M].

    Beltagy et al. (2020), "Longformer: The Long-Document Transformer", "sliding window".

    Raises:
      ValueError: before or after is negative.
    """
    return padding(context) & near(context.valid.shape[1], before=before, after=after)


def both(first: Mask, second: Mask) -> Mask:
    """What both masks show."""
    return lambda context: first(context) & second(context)


def not_after(length: int) -> jax.Array:
    """True where a key is not after the query: bool [1, 1, L, L]."""
    order_L = jnp.arange(length)
    return (order_L[None, :] <= order_L[:, None])[None, None]


def near(length: int, *, before: int, after: int) -> jax.Array:
    """True where a key is at most `before` before the query, or `after` after it: bool [1, 1, L, L]."""
    for field, value in (("before", before), ("after", after)):
        if value < 0:
            raise ValueError(f"{field} is {value}; allowed: an integer of at least 0")
    order_L = jnp.arange(length)
    ahead_LL = order_L[None, :] - order_L[:, None]
    return ((ahead_LL >= -before) & (ahead_LL <= after))[None, None]


def segment_ids(context: Context, mask: str) -> jax.Array:
    """The segments, int32 [B, L]; ValueError names the mask that wants them where there are none."""
    if context.segments is None:
        raise ValueError(f"visible is {mask} and the batch has no 'segments'; allowed: int [B, L]")
    return context.segments
