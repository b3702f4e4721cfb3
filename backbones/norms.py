"""Layer normalization over the last axis, with float32 statistics whatever the dtype of the input.

Both modules return the dtype of x; their parameters are float32. linen's own follow the dtype of the
parameters instead, and compute the variance as E[x^2] - E[x]^2, which cancels.

Dimensions: D model width; any axes may stand before it.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale. Zhang and Sennrich (2019), "Root Mean Square Layer
    Normalization"."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float [..., D] to the same shape and dtype."""
        scale_D = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (wide * inverse * along_last(scale_D, x.ndim)).astype(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias. Ba et al. (2016), "Layer Normalization"."""

    epsilon: float = 1e-6
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float [..., D] to the same shape and dtype."""
        scale_D = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        y = wide * inverse * along_last(scale_D, x.ndim)
        if self.use_bias:
            y = y + along_last(self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32), x.ndim)
        return y.astype(x.dtype)


def along_last(vector_D: jax.Array, rank: int) -> jax.Array:
    """[D] as [1, ..., 1, D] of the given rank, since implicit rank promotion is an error here."""
    return vector_D.reshape((1,) * (rank - 1) + vector_D.shape)
