"""From an encoder's output to one vector a text: functions `Encoded -> float32 [B, D]`. Poolers with
parameters are modules of the same form, see `attention_poolers` and `token_aggregation`.

A text without tokens becomes the zero vector, never NaN. Letters: B batch, L length, D width.
"""

import jax
import jax.numpy as jnp

from backbones.encoded import Encoded


def cls(encoded: Encoded) -> jax.Array:
    """The first position's vector, where `[CLS]` stands (Devlin et al., 2019, "BERT")."""
    return empty_to_zero(encoded.last[:, 0].astype(jnp.float32), encoded.mask)


def last(encoded: Encoded) -> jax.Array:
    """The last valid position's vector, as decoders are pooled (Neelakantan et al., 2022, "Text and
    Code Embeddings by Contrastive Pre-Training")."""
    length = encoded.mask.shape[1]
    last_B = length - 1 - jnp.argmax(encoded.mask[:, ::-1], axis=1)
    x_BD = jnp.take_along_axis(encoded.last, last_B[:, None, None], axis=1)[:, 0]
    return empty_to_zero(x_BD.astype(jnp.float32), encoded.mask)


def mean(encoded: Encoded) -> jax.Array:
    """The mean over valid positions (Reimers and Gurevych, 2019, "Sentence-BERT")."""
    return _weighted(encoded, encoded.mask.astype(jnp.float32))


def weighted_mean(encoded: Encoded) -> jax.Array:
    """The mean weighted by position, 1 for the first valid one, 2 for the second, and so on
    (Muennighoff, 2022, "SGPT: GPT Sentence Embeddings for Semantic Search")."""
    mask_BL = encoded.mask.astype(jnp.float32)
    return _weighted(encoded, jnp.cumsum(mask_BL, axis=1) * mask_BL)


def max(encoded: Encoded) -> jax.Array:
    """The maximum over valid positions, feature by feature (Reimers and Gurevych, 2019)."""
    x_BLD = jnp.where(encoded.mask[:, :, None], encoded.last.astype(jnp.float32), -jnp.inf)
    return empty_to_zero(jnp.max(x_BLD, axis=1), encoded.mask)


def _weighted(encoded: Encoded, weight_BL: jax.Array) -> jax.Array:
    # Masked by `where` too: whatever a padded position holds must not reach the sum.
    x_BLD = jnp.where(encoded.mask[:, :, None], encoded.last.astype(jnp.float32), 0.0)
    total_B = jnp.maximum(weight_BL.sum(axis=1), 1.0)
    return jnp.einsum("bld,bl->bd", x_BLD, weight_BL) / total_B[:, None]


def empty_to_zero(x_BD: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """The vectors, zero where a text has no token."""
    return jnp.where(mask_BL.any(axis=1)[:, None], x_BD, 0.0)
