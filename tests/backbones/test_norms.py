"""Norms against NumPy in float64, and their float32 statistics under bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones.norms import LayerNorm, RMSNorm


def with_random_params(module, x):
    params = module.init(jax.random.key(0), x)
    return jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape), params)


def oracle(module, params, x):
    p, x = jax.tree.map(lambda a: np.asarray(a, np.float64), (params["params"], x))
    if isinstance(module, LayerNorm):
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + module.epsilon) * p["scale"] + p.get("bias", 0)


@pytest.mark.parametrize("module", [RMSNorm(), LayerNorm(), LayerNorm(use_bias=False)])
@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8)])
def test_equals_numpy(module, shape):
    x = jax.random.normal(jax.random.key(2), shape) * 3 + 1
    params = with_random_params(module, x)
    expected = oracle(module, params, x)
    assert np.max(np.abs(module.apply(params, x) - expected)) <= 1e-5 * np.max(np.abs(expected))


def test_by_hand():
    x = jnp.array([3.0, 4.0])  # mean square 12.5; mean 3.5, variance 0.25
    for module, expected in (
        (RMSNorm(epsilon=0.0), [3 / 12.5**0.5, 4 / 12.5**0.5]),
        (LayerNorm(epsilon=0.0), [-1, 1]),
    ):
        np.testing.assert_allclose(module.apply(module.init(jax.random.key(0), x), x), expected, rtol=1e-6)


@pytest.mark.parametrize("module", [RMSNorm(), LayerNorm()])
def test_statistics_are_float32_under_bfloat16(module):
    """A bfloat16 sum of 4,096 terms would stop growing; the only error is the rounding of the output."""
    x = (300 + jax.random.normal(jax.random.key(3), (2, 4096)) * 8).astype(jnp.bfloat16)
    params = module.init(jax.random.key(0), x)
    y = module.apply(params, x)
    assert y.dtype == jnp.bfloat16
    expected = oracle(module, params, x.astype(jnp.float32))
    assert np.max(np.abs(y.astype(jnp.float32) - expected) / (np.abs(expected) + 1e-2)) < 2**-7


@pytest.mark.parametrize("module", [RMSNorm(), LayerNorm()])
def test_zeros_have_a_finite_gradient(module):
    x = jnp.zeros((2, 8))
    params = module.init(jax.random.key(0), x)
    assert jnp.all(jnp.isfinite(jax.grad(lambda x: module.apply(params, x).sum())(x)))
