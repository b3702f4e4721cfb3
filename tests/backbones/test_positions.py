"""Rotary and learned positions, and learned segments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.norms import LayerNorm
from backbones.positions import (
    InTurn,
    LearnedPositions,
    LearnedSegments,
    Normalized,
    rotary,
    slower,
    slower_when_long,
)
from moe.feed_forward import Context


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def rotary_oracle(x_BHLd, positions_BL, base):
    """Each pair as one complex number, turned by exp(i angle), entry by entry."""
    x = np.asarray(x_BHLd, np.float64)
    half = x.shape[-1] // 2
    y = np.empty_like(x)
    for b, h, t in np.ndindex(x.shape[:3]):
        for i in range(half):
            turned = complex(x[b, h, t, i], x[b, h, t, half + i]) * np.exp(
                1j * float(positions_BL[b, t]) * base ** (-2 * i / x.shape[-1])
            )
            y[b, h, t, i], y[b, h, t, half + i] = turned.real, turned.imag
    return y


def test_rotary_equals_complex_numbers():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 6))
    positions = np.array([[0, 1, 2, 3], [5, 5, 90, 7]])
    y = rotary(x, jnp.asarray(positions), base=100.0)
    expected = rotary_oracle(x, positions, 100.0)
    assert np.max(np.abs(y - expected)) <= 1e-5 * np.max(np.abs(expected))
    shared = rotary(x, jnp.arange(4)[None])
    np.testing.assert_array_equal(shared, rotary(x, jnp.broadcast_to(jnp.arange(4), (2, 4))))


SCORE = jax.jit(lambda q, k, i, j: jnp.sum(rotary(q, i) * rotary(k, j)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0, 2**31 - 1))
def test_scores_depend_on_distance_alone(i, j, shift, seed):
    q, k = draw(seed, 2, 1, 1, 1, 8)

    def score(i, j):
        return float(SCORE(q, k, np.array([[i]]), np.array([[j]])))

    assert score(i, j) == pytest.approx(score(i + shift, j + shift), abs=2e-3)
    assert score(i, i) == pytest.approx(float(jnp.sum(q * k)), abs=1e-4)


def test_rotary_refuses_an_odd_width():
    with pytest.raises(ValueError, match="is 5"):
        rotary(jnp.ones((1, 1, 2, 5)), jnp.arange(2)[None])


def test_rotary_turns_by_scaled_frequencies():
    """All divided by 4: position 12 is turned as position 3 was."""
    x = jax.random.normal(jax.random.key(0), (1, 1, 2, 6))
    scaled = rotary(x, jnp.array([[12, 4]]), scaling=functools.partial(slower, factor=4.0))
    np.testing.assert_allclose(scaled, rotary(x, jnp.array([[3, 1]])), rtol=1e-6, atol=1e-6)


def test_only_low_frequencies_are_slower():
    """Over 64 positions these turn 8, 4, 2.5, 1 and 0.5 times: two are kept, two are divided by 10, and the
    third, halfway from 1 to 4, is the mean of both."""
    turns = jnp.array([8.0, 4.0, 2.5, 1.0, 0.5])
    frequencies = turns * 2 * np.pi / 64
    found = slower_when_long(frequencies, factor=10.0, low=1.0, high=4.0, original_length=64)
    expected = frequencies * jnp.array([1.0, 1.0, 0.55, 0.1, 0.1])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_learned_positions_may_begin_later_in_their_table():
    """As those of RoBERTa: position 0 has row 2."""
    x_BLD = jnp.zeros((1, 4, 3))
    module = LearnedPositions(max_length=4, first=2)
    context = Context(valid=jnp.ones((1, 4), bool), positions=jnp.array([[0, 3, 4, -1]]))
    params = module.init(jax.random.key(1), x_BLD, context)
    table = params["params"]["table"]
    assert table.shape == (6, 3)
    y_BLD = module.apply(params, x_BLD, context)
    np.testing.assert_array_equal(y_BLD[0, :2], table[jnp.array([2, 5])])
    assert jnp.isnan(y_BLD[0, 2:]).all()


def test_a_norm_in_the_place_of_positions():
    x_BLD = jax.random.normal(jax.random.key(0), (2, 3, 4))
    context = Context(valid=jnp.ones((2, 3), bool))
    module = Normalized(LayerNorm())
    params = module.init(jax.random.key(1), x_BLD, context)
    alone = LayerNorm().apply({"params": params["params"]["norm"]}, x_BLD)
    np.testing.assert_array_equal(module.apply(params, x_BLD, context), alone)


def test_all_tokens_may_be_of_one_segment():
    """Whatever the batch says, but not prefix vectors, which have no segment."""
    x_BLD = jnp.zeros((1, 3, 4))
    module = LearnedSegments(num_segments=2, always=1)
    context = Context(valid=jnp.ones((1, 3), bool), tokens=jnp.array([[-1, 5, 6]]))
    params = module.init(jax.random.key(1), x_BLD, context)
    row = params["params"]["table"][1]
    for segments in (None, jnp.array([[-1, 0, 7]])):
        y_BLD = module.apply(params, x_BLD, context.replace(segments=segments))
        np.testing.assert_array_equal(y_BLD[0], jnp.stack([jnp.zeros(4), row, row]))
    with pytest.raises(ValueError, match="always is 2; allowed: 0 to 1, or None"):
        LearnedSegments(num_segments=2, always=2).init(jax.random.key(1), x_BLD, context)


def test_learned_positions_add_the_rows_asked_for():
    x_BLD = jax.random.normal(jax.random.key(0), (2, 3, 4))
    module = LearnedPositions(max_length=5)
    context = Context(valid=jnp.ones((2, 3), bool), positions=jnp.arange(3)[None])
    params = module.init(jax.random.key(1), x_BLD, context)
    table = params["params"]["table"]
    np.testing.assert_array_equal(module.apply(params, x_BLD, context), x_BLD + table[None, :3])
    packed = context.replace(positions=jnp.array([[0, 1, 0], [4, 3, 2]]))
    added = jnp.stack([table[jnp.array([0, 1, 0])], table[jnp.array([4, 3, 2])]])
    np.testing.assert_array_equal(module.apply(params, x_BLD, packed), x_BLD + added)
    beyond = context.replace(positions=jnp.array([[0, 1, 5], [0, 1, -1]]))
    nan_BL = jnp.isnan(module.apply(params, x_BLD, beyond)).all(-1)
    np.testing.assert_array_equal(nan_BL, [[False, False, True]] * 2)


def test_learned_positions_refuse_a_longer_input():
    context = Context(valid=jnp.ones((1, 6), bool), positions=jnp.arange(6)[None])
    with pytest.raises(ValueError, match=r"length 6.*max_length = 5"):
        LearnedPositions(max_length=5).init(jax.random.key(0), jnp.ones((1, 6, 4)), context)


def test_learned_segments_add_the_rows_asked_for():
    x_BLD = jax.random.normal(jax.random.key(0), (2, 3, 4))
    module = LearnedSegments(num_segments=2)
    context = Context(valid=jnp.ones((2, 3), bool), segments=jnp.array([[-1, 0, 1], [1, 1, 2]]))
    params = module.init(jax.random.key(1), x_BLD, context)
    table = params["params"]["table"]
    y_BLD = module.apply(params, x_BLD, context)
    np.testing.assert_array_equal(y_BLD[0], x_BLD[0] + jnp.stack([jnp.zeros(4), table[0], table[1]]))
    np.testing.assert_array_equal(jnp.isnan(y_BLD).all(-1), [[False] * 3, [False, False, True]])
    with pytest.raises(ValueError, match="no 'segments'"):
        module.init(jax.random.key(1), x_BLD, context.replace(segments=None))
    with pytest.raises(ValueError, match="num_segments is 0"):
        LearnedSegments(num_segments=0).init(jax.random.key(1), x_BLD, context)


def test_positions_and_segments_in_turn():
    x_BLD = jax.random.normal(jax.random.key(0), (1, 2, 4))
    context = Context(
        valid=jnp.ones((1, 2), bool), positions=jnp.arange(2)[None], segments=jnp.array([[0, 1]])
    )
    module = InTurn(LearnedPositions(max_length=2), LearnedSegments(num_segments=2))
    params = module.init(jax.random.key(1), x_BLD, context)
    positions, segments = (params["params"][name]["table"] for name in ("first", "second"))
    np.testing.assert_array_equal(
        module.apply(params, x_BLD, context), x_BLD + positions[None] + segments[None]
    )
