"""The two gathers against their formulas and autodiff of these, for any edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.permute import Layout, collect, spread

T, K, D = 4, 2, 3
R = T * K


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def layout_of(rows, num_rows, choices):
    """Edge r has row rows[r], or none where that is -1; rows without an edge name edge 0."""
    rows = np.asarray(rows)
    edge, filled = np.zeros(num_rows, np.int32), np.zeros(num_rows, bool)
    edge[rows[rows >= 0]], filled[rows[rows >= 0]] = np.flatnonzero(rows >= 0), True
    token = np.arange(R) // K if choices else np.array([3, 0, 0, 1, 3, 3, 2, 0])
    made = (token.astype(np.int32), edge, filled, np.maximum(rows, 0).astype(np.int32), rows >= 0)
    return Layout(*map(jnp.asarray, made), choices)


def spread_formula(x_TD, layout):
    return x_TD[layout.token[layout.edge]] * layout.filled[:, None]


def collect_formula(values_ND, weight_R, layout):
    weighted_RD = (weight_R * layout.keep)[:, None] * values_ND[layout.row]
    return jnp.zeros((T, values_ND.shape[1])).at[layout.token].add(weighted_RD)


def both(spread, collect, x_TD, values_ND, weight_R, layout):
    """The results of both functions and all gradients; rows without an edge count for nothing."""
    rows_ND, pull_spread = jax.vjp(lambda x: spread(x, layout), x_TD)
    y_TD, pull_collect = jax.vjp(lambda v, w: collect(v, w, layout), values_ND, weight_R)
    return rows_ND * layout.filled[:, None], pull_spread(values_ND), y_TD, pull_collect(x_TD)


@jax.jit
def ours(*arrays):
    return both(spread, lambda v, w, layout: collect(v, w, layout, T), *arrays)


@jax.jit
def formulas(*arrays):
    return both(spread_formula, collect_formula, *arrays)


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@given(st.permutations(range(R + 2)), st.integers(0, R), st.sampled_from([0, K]))
@settings(max_examples=50, deadline=None)
def test_values_and_gradients_are_those_of_the_formulas(places, kept, choices):
    rows = [place if r < kept else -1 for r, place in enumerate(places[:R])]
    layout = layout_of(rows, R + 2, choices)
    arrays = draw(0, T, D), draw(1, R + 2, D), draw(2, R), layout
    jax.tree.map(assert_close, ours(*arrays), formulas(*arrays))


@pytest.mark.parametrize("choices", [0, K])
def test_sums_are_of_float32_and_come_in_the_dtype_of_the_values(choices):
    """In bfloat16 1 + 2^-9 would be 1, and nothing would be left of it less 1."""
    layout = layout_of(range(R), R, choices).replace(token=jnp.arange(R) // K)
    weight_R = jnp.tile(jnp.array([1 + 2**-9, -1.0], jnp.float32), T)
    y_TD = collect(jnp.ones((R, D), jnp.bfloat16), weight_R, layout, T)
    assert y_TD.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y_TD.astype(jnp.float32), 2**-9)


@pytest.mark.parametrize("function", ["spread", "collect"])
def test_no_gradient_is_a_scatter(function):
    layout = layout_of(range(R), R, K)
    loss = {
        "spread": lambda x: spread(x[:T], layout).sum(),
        "collect": lambda x: collect(x, jnp.ones(R), layout, T).sum(),
    }[function]
    text = jax.jit(jax.grad(loss)).lower(draw(0, R, D)).as_text()
    assert "gather" in text
    assert "scatter" not in text
