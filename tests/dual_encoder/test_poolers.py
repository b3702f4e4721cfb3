import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones.encoded import Encoded
from dual_encoder import poolers

X = np.array([[[1.0, 8.0], [2.0, -4.0], [99.0, 99.0]], [[5.0, 6.0], [1.0, 1.0], [3.0, 2.0]]], np.float32)
MASK = np.array([[True, True, False], [True, True, True]])


@pytest.mark.parametrize(
    ("pooler", "expected"),
    [
        (poolers.cls, [[1, 8], [5, 6]]),
        (poolers.last, [[2, -4], [3, 2]]),
        (poolers.mean, [[1.5, 2], [3, 3]]),
        # (1 * 1 + 2 * 2) / 3, (8 - 8) / 3; (5 + 2 + 9) / 6, (6 + 2 + 6) / 6
        (poolers.weighted_mean, [[5 / 3, 0], [16 / 6, 14 / 6]]),
        (poolers.max, [[2, 8], [5, 6]]),
    ],
)
def test_by_hand(pooler, expected):
    np.testing.assert_allclose(pooler(Encoded(jnp.asarray(X), jnp.asarray(MASK))), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "pooler", [poolers.cls, poolers.last, poolers.mean, poolers.weighted_mean, poolers.max]
)
def test_padding_changes_nothing_and_gets_no_gradient(pooler):
    def pooled(x):
        return pooler(Encoded(x, jnp.asarray(MASK)))

    garbage = np.where(MASK[:, :, None], X, np.nan)
    np.testing.assert_array_equal(pooled(jnp.asarray(X)), pooled(jnp.asarray(garbage)))
    grad = jax.grad(lambda x: pooled(x).sum())(jnp.asarray(X))
    np.testing.assert_array_equal(grad[~MASK], 0.0)


@pytest.mark.parametrize(
    "pooler", [poolers.cls, poolers.last, poolers.mean, poolers.weighted_mean, poolers.max]
)
def test_a_text_without_tokens_is_the_zero_vector(pooler):
    pooled = pooler(Encoded(jnp.asarray(X), jnp.zeros_like(MASK)))
    np.testing.assert_array_equal(pooled, 0.0)
