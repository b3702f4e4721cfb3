"""Vectors for the tests of this room, and the ways in which they may come."""

import numpy as np
import pytest

from clustering import rows
from training import mesh


@pytest.fixture(scope="session")
def mixture():
    """The function (count, width, seed) -> float32 [count, width] around a few centers of unequal weight."""

    def make(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
        generator = np.random.default_rng(seed)
        centers = 2 * generator.standard_normal((6, width))
        chosen = generator.choice(6, count, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
        return (centers[chosen] + generator.standard_normal((count, width))).astype(np.float32)

    return make


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 256 rows, so that little data comes in many."""
    monkeypatch.setattr(rows, "_MOST", {"cpu": 256})


@pytest.fixture(scope="session")
def over_eight():
    """Rows of a block over the eight simulated devices."""
    return mesh.batch_sharding(mesh.data_mesh())
