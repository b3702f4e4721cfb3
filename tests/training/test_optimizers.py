import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training.optimizers import clipped


def test_clips_before_the_optimizer():
    optimizer = clipped(optax.sgd(1.0), max_norm=1.0)
    updates, _ = optimizer.update({"w": jnp.array([3.0, 4.0])}, optimizer.init({"w": jnp.zeros(2)}))
    np.testing.assert_allclose(updates["w"], [-0.6, -0.8], rtol=1e-6)


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(ValueError, match="max_norm is 0"):
        clipped(optax.sgd(1.0), max_norm=0)
    with pytest.raises(ValueError, match="is an argument missing"):
        clipped(functools.partial(optax.adamw, b1=0.9), max_norm=1.0)
