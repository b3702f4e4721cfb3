"""The poolings of sentence-transformers, by its names; concatenated where there are several.

Letters: B batch, L length, D width.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from backbones.encoded import Encoded
from dual_encoder import poolers
from dual_encoder.pretrained_folder import check_pooling


@dataclasses.dataclass(frozen=True)
class Pooling:
    """The pooler `Encoded -> float32 [B, D x modes]`.

    Attributes:
      modes: names of `dual_encoder.pretrained_folder.POOLINGS`; their vectors are concatenated in this order.
      skip: positions at the start of a text that are not pooled, such as those of its prompt. They count for
        the weights of `weightedmean`, which are by position.

    Raises:
      PretrainedError: a name that is none.
    """

    modes: tuple[str, ...]
    skip: int = 0

    def __post_init__(self):
        check_pooling(self.modes, "pooling")

    def __call__(self, encoded: Encoded) -> jax.Array:
        pooled = encoded.replace(mask=encoded.mask & _from(encoded.mask, self.skip))
        return jnp.concatenate([_POOLERS[mode](encoded, pooled) for mode in self.modes], axis=-1)


def _from(mask_BL: jax.Array, skip: int) -> jax.Array:
    """True from the position after the first `skip` of each text."""
    return jnp.cumsum(mask_BL.astype(jnp.int32), axis=1) > skip


def _first(_: Encoded, pooled: Encoded) -> jax.Array:
    at_B = jnp.argmax(pooled.mask, axis=1)
    x_BD = jnp.take_along_axis(pooled.last, at_B[:, None, None], axis=1)[:, 0].astype(jnp.float32)
    return jnp.where(pooled.mask.any(axis=1)[:, None], x_BD, 0.0)


def _mean_sqrt_len(_: Encoded, pooled: Encoded) -> jax.Array:
    count_B1 = pooled.mask.sum(axis=1, keepdims=True).astype(jnp.float32)
    return poolers.mean(pooled) * jnp.sqrt(count_B1)


def _weighted_mean(encoded: Encoded, pooled: Encoded) -> jax.Array:
    weight_BL = jnp.cumsum(encoded.mask.astype(jnp.float32), axis=1) * pooled.mask
    x_BLD = jnp.where(pooled.mask[:, :, None], pooled.last.astype(jnp.float32), 0.0)
    total_B = jnp.maximum(weight_BL.sum(axis=1), 1.0)
    return jnp.einsum("bld,bl->bd", x_BLD, weight_BL) / total_B[:, None]


_POOLERS: dict[str, Callable[[Encoded, Encoded], jax.Array]] = {
    "cls": _first,
    "max": lambda _, pooled: poolers.max(pooled),
    "mean": lambda _, pooled: poolers.mean(pooled),
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": lambda _, pooled: poolers.last(pooled),
}
