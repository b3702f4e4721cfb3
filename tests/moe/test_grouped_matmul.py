"""Grouped products against one product an expert in NumPy, on whatever sizes experts have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe import grouped_matmul as module
from moe.grouped_matmul import grouped_matmul


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def oracle(x_RD, w_EDF, sizes):
    y_RF = np.zeros((len(x_RD), w_EDF.shape[2]))
    begin = 0
    for w_DF, size in zip(w_EDF, sizes, strict=True):
        y_RF[begin : begin + size] = x_RD[begin : begin + size].astype(np.float64) @ w_DF
        begin += size
    return y_RF


def oracle_gradients(x_RD, w_EDF, sizes, dy_RF):
    dx_RD = oracle(dy_RF, np.swapaxes(w_EDF, 1, 2), sizes)
    ends = np.cumsum(sizes)
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return dx_RD, np.stack([x_RD[part].astype(np.float64).T @ dy_RF[part] for part in parts])


def assert_close(ours, expected, tolerance=1e-5):
    assert np.max(np.abs(ours - expected), initial=0) <= tolerance * np.max(np.abs(expected), initial=0)


@jax.jit
def ours(x_RD, w_EDF, sizes_E, dy_RF):
    y_RF, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes_E), x_RD, w_EDF)
    return y_RF, pull(dy_RF)


def check(rows, sizes, width=6, hidden=5):
    x_RD, w_EDF = draw(0, rows, width), draw(1, len(sizes), width, hidden)
    dy_RF = draw(2, rows, hidden)
    y_RF, gradients = ours(x_RD, w_EDF, jnp.asarray(sizes, jnp.int32), dy_RF)
    assert_close(y_RF, oracle(x_RD, w_EDF, sizes))
    jax.tree.map(assert_close, gradients, oracle_gradients(x_RD, w_EDF, sizes, dy_RF))
    np.testing.assert_array_equal(y_RF[sum(sizes) :], 0)


@pytest.fixture
def small_blocks(monkeypatch):
    """Experts then have several blocks, of more than one size, at rows that compile fast."""
    monkeypatch.setattr(module, "_BLOCKS", (2, 3, 5))


@pytest.mark.parametrize(
    "sizes",
    [
        [513, 0, 512, 97],  # more than the largest block, nothing, just one; 78 rows are no expert's
        [31, 32, 33, 1104],  # the last block would reach beyond the last row
        [0, 0, 1200, 0],
        [0, 0, 0, 0],
    ],
)
def test_values_and_gradients_equal_a_product_an_expert(sizes):
    check(1200, sizes)


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (1, [1]),
        *(pytest.param(n, sizes, marks=pytest.mark.slow) for n, sizes in ((5, [0, 0, 0]), (7, [7, 0, 0]))),
        (40, [33, 0, 7]),
    ],
)
def test_fewer_rows_than_the_largest_block(rows, sizes):
    check(rows, sizes)


@given(st.lists(st.integers(0, 12), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sizes(small_blocks, sizes):
    check(48, sizes, width=7)  # a shape of its own: not compiled with other blocks


def test_a_row_is_the_same_to_the_bit_whatever_others_its_expert_has():
    """At these widths XLA on a CPU adds up products of 48 rows or fewer in another order."""
    rows, x_RD, w_EDF = 256, draw(0, 256, 128), jnp.asarray(draw(1, 2, 128, 512))
    product = jax.jit(grouped_matmul)
    results = [
        np.asarray(product(x_RD, w_EDF, jnp.array([100, size]))[100])
        for size in (1, 20, 33, 64, 65, rows - 100)
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_no_rows_and_no_width():
    sizes_E = jnp.zeros(3, jnp.int32)
    assert grouped_matmul(jnp.zeros((0, 4)), jnp.ones((3, 4, 5)), sizes_E).shape == (0, 5)
    grads = jax.grad(lambda w: grouped_matmul(jnp.zeros((0, 4)), w, sizes_E).sum())(jnp.ones((3, 4, 5)))
    np.testing.assert_array_equal(grads, np.zeros((3, 4, 5)))


def test_garbage_in_rows_of_no_expert_reaches_no_gradient():
    x_RD, w_EDF = jnp.asarray(draw(0, 8, 3)).at[5:].set(jnp.nan), draw(1, 2, 3, 4)
    dy_RF = jnp.asarray(draw(2, 8, 4)).at[5:].set(jnp.nan)
    results = ours(x_RD, w_EDF, jnp.array([2, 3]), dy_RF)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))


def test_bfloat16_rows_add_up_in_float32():
    """300 ones, of which bfloat16 could add 256; the weights' gradient keeps their float32."""
    arguments = jnp.ones((300, 300), jnp.bfloat16), jnp.ones((1, 300, 2)), jnp.array([299])
    y_RF, (dx_RD, dw_EDF) = ours(*arguments, jnp.ones((300, 2), jnp.bfloat16))
    assert y_RF.dtype == dx_RD.dtype == jnp.bfloat16
    assert dw_EDF.dtype == jnp.float32
    np.testing.assert_array_equal(y_RF[:299].astype(np.float32), 300)
    np.testing.assert_array_equal(dw_EDF, 299)


@pytest.mark.parametrize("sizes", [[3, 0, 4], [0, 0, 0], [2, 5, 9]])
def test_the_form_of_other_platforms_is_the_same_function(sizes):
    x_RD, w_EDF, dy_RF = draw(0, 16, 6), draw(1, 3, 6, 5), draw(2, 16, 5)
    sizes_E = jnp.asarray(sizes, jnp.int32)
    assert_close(
        module._ragged_product(x_RD, w_EDF, sizes_E, numbers=module._PLAIN), oracle(x_RD, w_EDF, sizes)
    )
    dx_RD, dw_EDF = oracle_gradients(x_RD, w_EDF, sizes, dy_RF)
    assert_close(module._ragged_product(dy_RF, w_EDF, sizes_E, numbers=module._TRANSPOSED), dx_RD)
    assert_close(module._ragged_outer(x_RD, dy_RF, sizes_E), dw_EDF)


def test_results_are_written_in_place():
    """What a gradient needs beside arguments and results is a few blocks, not another copy of the weights."""
    rows, experts, width, hidden = 64, 256, 64, 64
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, width), (experts, width, hidden))]
    sizes_E = jax.ShapeDtypeStruct((experts,), jnp.int32)
    loss = lambda x, w, sizes: (grouped_matmul(x, w, sizes) ** 2).sum()
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes, sizes_E).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    hidden_bytes, weight_bytes = 4 * rows * hidden, 4 * experts * width * hidden
    assert temporaries < 3 * hidden_bytes + weight_bytes / 4


@pytest.mark.tpu_plan
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_tpu_has_grouped_kernels_for_all_three_products(tpu_devices, dtype):
    """A dense product of all experts would count 8 times as many operations."""
    rows, experts, width, hidden = 1024, 8, 256, 512
    sharding = jax.sharding.SingleDeviceSharding(tpu_devices("v5e:2x2")[0])
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    arguments = (
        shape((rows, width), dtype),
        shape((experts, width, hidden), jnp.float32),
        shape((experts,), jnp.int32),
        shape((rows, hidden), dtype),
    )
    compiled = ours.lower(*arguments).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') >= 3
    assert compiled.cost_analysis()["flops"] < 1.1 * 6 * rows * width * hidden


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(AssertionError):
        grouped_matmul(jnp.zeros((4, 3)), jnp.zeros((2, 4, 5)), jnp.zeros(2, jnp.int32))
    with pytest.raises(AssertionError):
        grouped_matmul(jnp.zeros((4, 3)), jnp.zeros((2, 3, 5)), jnp.zeros(3, jnp.int32))
