"""Shared by the tests of moe: variables that cost no compilation."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def drawn():
    """The function `(module, *inputs) -> variables`, normal numbers of the shapes that init would give; a
    compiled init costs more than the layer itself."""

    def draw(module, *inputs, seed=0):
        numbers = np.random.default_rng(seed)
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        return jax.tree.map(lambda leaf: numbers.normal(size=leaf.shape).astype(leaf.dtype) * 0.6, shapes)

    return draw
