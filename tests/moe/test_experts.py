"""Experts start as they would alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.dispatch import Buffers
from moe.experts import Dense, Gated


@pytest.mark.parametrize("module", [Dense(64, init_scale=2.0), Gated(64, init_scale=2.0)])
def test_the_spread_of_a_kernel_is_that_of_one_expert(module):
    """Variance init_scale / fan-in, whatever the number of experts."""
    rows = Buffers(jnp.zeros((1, 8, 2, 32)))
    params = module.init(jax.random.key(0), rows)["params"]
    for name, kernel_EDF in params.items():
        assert kernel_EDF.shape == ((8, 64, 32) if name == "out" else (8, 32, 64))
        assert np.var(kernel_EDF) == pytest.approx(2.0 / kernel_EDF.shape[1], rel=0.1)


def test_biases_are_each_experts_own():
    rows = Buffers(jnp.ones((1, 2, 1, 3)))
    module = Dense(4, activation=lambda x: x, use_bias=True)
    params = module.init(jax.random.key(0), rows)["params"]
    zero = jax.tree.map(jnp.zeros_like, params)
    zero["out_bias"] = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    y = module.apply({"params": zero}, rows).values
    assert y.tolist() == [[[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]]]


def test_a_width_must_be_positive():
    with pytest.raises(ValueError, match="feed-forward width is 0"):
        Dense(0).init(jax.random.key(0), Buffers(jnp.ones((1, 2, 1, 3))))
