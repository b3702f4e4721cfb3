"""T5's buckets by hand, by their formula in float64 and as T5X computes them, and the bias made of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.relative import RelativeBias, bucket
from training.build import build


def bucket_oracle(distance, num_buckets, max_distance, bidirectional):
    """One distance, key minus query. The logarithm gets 1e-12 more, so that a power lands on itself."""
    first = 0
    if bidirectional:
        num_buckets //= 2
        first = num_buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = num_buckets // 2
    if distance < exact:
        return first + distance
    share = math.log(distance / exact) / math.log(max_distance / exact)
    return first + min(exact + math.floor(share * (num_buckets - exact) + 1e-12), num_buckets - 1)


def test_by_hand():
    """16 a direction: 0 to 7 exact, then bounds 8 * 16^(j/8) = 8, 11.3, 16, 22.6, 32, 45.3, 64, 90.5."""
    behind = {0: 0, 1: 1, 7: 7, 8: 8, 11: 8, 12: 9, 15: 9, 16: 10, 22: 10, 23: 11, 31: 11, 32: 12}
    behind |= {45: 12, 46: 13, 63: 13, 64: 14, 90: 14, 91: 15, 127: 15, 128: 15, 10_000: 15}
    for n, expected in behind.items():
        assert int(bucket(jnp.array(-n))) == expected
        assert int(bucket(jnp.array(n))) == (16 + expected if n else 0)
    # 32 buckets in one direction: 0 to 15 exact, then 16 * 8^(j/16), of which 16, 18.2, 20.7, ..., 112.4
    behind = {15: 15, 16: 16, 18: 16, 19: 17, 20: 17, 21: 18, 112: 30, 113: 31, 200: 31, -1: 0, -90: 0}
    for n, expected in behind.items():
        assert int(bucket(jnp.array(-n), bidirectional=False)) == expected


SIZES = st.sampled_from([(32, 128), (32, 20), (8, 32), (4, 2), (4, 64), (16, 9), (64, 1000)])


@settings(max_examples=40, deadline=None)
@given(SIZES, st.booleans())
def test_equals_the_formula(sizes, bidirectional):
    num_buckets, max_distance = sizes
    if not bidirectional and max_distance <= num_buckets // 2:
        num_buckets //= 2
    distances = np.arange(-1100, 1101)
    kwargs = {"num_buckets": num_buckets, "max_distance": max_distance, "bidirectional": bidirectional}
    ours = bucket(jnp.asarray(distances), **kwargs)
    np.testing.assert_array_equal(ours, [bucket_oracle(int(n), **kwargs) for n in distances])


@pytest.mark.parametrize("bidirectional", [True, False])
def test_equals_the_arithmetic_of_t5x(bidirectional):
    """float32 with an epsilon under the logarithm, at T5's sizes: the weights of T5 fit our buckets."""
    n = np.arange(0, 2000)
    one_way = 16 if bidirectional else 32
    exact = one_way // 2
    grown = np.log(np.maximum(n, 1).astype(np.float32) / exact + np.finfo(np.float32).eps)
    grown = exact + (grown / np.log(128 / exact) * (one_way - exact)).astype(np.int32)
    expected = np.where(n < exact, n, np.minimum(grown, one_way - 1))
    np.testing.assert_array_equal(bucket(jnp.asarray(-n), bidirectional=bidirectional), expected)


def test_the_bias_follows_positions_not_places():
    module = RelativeBias(heads=3, num_buckets=8, max_distance=16)
    queries, keys = jnp.array([[5, 0], [40, 2]]), jnp.array([[0, 5, 9], [2, 2, 40]])
    params = module.init(jax.random.key(0), queries, keys)
    table = np.asarray(params["params"]["table"])
    assert table.shape == (8, 3)
    bias = module.apply(params, queries, keys)
    assert bias.shape == (2, 3, 2, 3)
    assert bias.dtype == jnp.float32
    for b, h, i, j in np.ndindex(bias.shape):
        row = bucket_oracle(int(keys[b, j] - queries[b, i]), 8, 16, True)
        assert bias[b, h, i, j] == table[row, h]
    shared = module.apply(params, queries[:1], keys[:1])
    np.testing.assert_array_equal(shared, bias[:1])


def test_each_bucket_gets_the_gradient_of_its_pairs():
    """Positions 0, 1, 2: distance 0 three times, one back twice, two back once; likewise ahead."""
    module = RelativeBias(heads=1, num_buckets=8, max_distance=16)
    row = jnp.arange(3)[None]
    params = module.init(jax.random.key(0), row, row)
    gradient = jax.grad(lambda p: module.apply(p, row, row).sum())(params)["params"]["table"]
    np.testing.assert_array_equal(gradient[:, 0], [3, 2, 1, 0, 0, 2, 1, 0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 0}, "heads is 0"),
        ({"heads": 2, "num_buckets": 7}, "num_buckets is 7; allowed: an even number of at least 4"),
        ({"heads": 2, "num_buckets": 1, "bidirectional": False}, "num_buckets is 1; allowed: an integer of"),
        ({"heads": 2, "num_buckets": 32, "max_distance": 8}, "max_distance is 8; allowed: more than 8"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    row = jnp.arange(3)[None]
    with pytest.raises(ValueError, match=message):
        build({"name": "backbones.relative.RelativeBias", **fields}).init(jax.random.key(0), row, row)
