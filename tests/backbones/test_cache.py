"""The cache of a decoder, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from backbones import cache as caches
from backbones.cache import KeysValues
from moe.feed_forward import Context


def context(valid, positions, segments=None):
    return Context(
        valid=jnp.array(valid, bool),
        positions=jnp.array(positions),
        segments=None if segments is None else jnp.array(segments),
    )


def test_slots_are_taken_in_order():
    cache = caches.empty(num_layers=2, batch_size=2, heads=3, max_length=4, width=5, dtype="float32")
    assert cache.own.keys.shape == cache.own.values.shape == (2, 2, 3, 4, 5)
    cache, slots = caches.admit(cache, context([[1, 1], [1, 0]], [[0, 1]], [[0, 1], [0, 0]]))
    np.testing.assert_array_equal(slots.valid, [[1, 1, 0, 0], [1, 0, 0, 0]])
    assert cache.start == 2
    # row 1 has one valid token so far: its next two are 1 and 2; padding among them gets no number
    np.testing.assert_array_equal(caches.next_positions(cache, jnp.ones((2, 2), bool)), [[2, 3], [1, 2]])
    after = caches.next_positions(cache, jnp.array([[True, True], [False, True]]))
    np.testing.assert_array_equal(after, [[2, 3], [1, 1]])
    cache, slots = caches.admit(cache, context([[1, 1], [0, 1]], after, [[1, 1], [5, 1]]))
    np.testing.assert_array_equal(slots.valid, [[1, 1, 1, 1], [1, 0, 0, 1]])
    np.testing.assert_array_equal(slots.positions, [[0, 1, 2, 3], [0, 1, 1, 1]])
    np.testing.assert_array_equal(slots.segments, [[0, 1, 1, 1], [0, 0, 5, 1]])
    assert not cache.overflown
    cache, slots = caches.admit(cache, context([[1], [1]], [[4], [2]]))
    assert slots.segments is None
    assert cache.overflown


def test_keys_and_values_are_written_where_asked():
    old = KeysValues(jnp.zeros((1, 1, 4, 2)), jnp.ones((1, 1, 4, 2)))
    new = old.write(KeysValues(jnp.full((1, 1, 2, 2), 7.0), jnp.full((1, 1, 2, 2), 8.0)), jnp.int32(1))
    np.testing.assert_array_equal(new.keys[0, 0, :, 0], [0, 7, 7, 0])
    np.testing.assert_array_equal(new.values[0, 0, :, 1], [1, 8, 8, 1])


def test_what_cannot_be_is_named():
    for sizes, message in (((0, 4), "batch_size is 0"), ((2, 0), "max_length is 0")):
        with pytest.raises(ValueError, match=message):
            caches.empty(1, sizes[0], 1, sizes[1], 1, "float32")
    cache = caches.empty(1, 2, 1, 4, 1, "float32")
    for valid in (np.ones((3, 1)), np.ones((2, 5))):
        with pytest.raises(ValueError, match=r"allowed with this cache: \[2, up to 4\]"):
            caches.admit(cache, context(valid, np.zeros((1, valid.shape[1]), int)))
