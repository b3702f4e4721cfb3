"""Dropless dispatch against the one-hot oracle, in values and all gradients, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.dropless import Dropless, _order, sorted_by_expert
from moe.leakage import NONE
from moe.one_hot import OneHot
from moe.routing import token_choice
from training.mesh import Layout


def by_tokens(groups, tokens):
    """All of them to the first expert."""
    expert_GSK = jnp.zeros((groups, tokens, 1), jnp.int32)
    return token_choice(expert_GSK, jnp.ones(expert_GSK.shape), jnp.ones(expert_GSK.shape, bool), 4)


@pytest.mark.parametrize(
    "name",
    [
        "any",
        "one expert has all",
        "an expert has nothing, and edges are not kept",
        "nothing is kept",
        pytest.param("experts choose", marks=pytest.mark.slow),
    ],
)
def test_equals_the_oracle(routings, equal_to_oracle, name):
    equal_to_oracle(Dropless(), OneHot(), routings[name])


@pytest.mark.parametrize(
    "name",
    [pytest.param("an expert has nothing, and edges are not kept", marks=pytest.mark.slow), "experts choose"],
)
def test_equals_the_oracle_on_eight_devices(routings, equal_to_oracle, name):
    equal_to_oracle(Dropless(), OneHot(), routings[name], mesh={"data": 2, "expert": 4})


def test_one_group_is_split_over_devices_between_tokens(routings, layer_of):
    """The whole batch as one group; each device still sorts its own tokens, and no sort is of them all."""
    routing = routings["one group"]
    mesh = {"data": 8}
    with jax.set_mesh(Layout(mesh).mesh()):
        layer, args = layer_of(Dropless(), routing)
        text = jax.jit(lambda *args: layer(*args)).lower(*args).compile().as_text()
    sorts = [line for line in text.splitlines() if " sort(" in line]
    assert sorts
    assert all(f"s32[{routing.expert.size // 8}]" in line for line in sorts)


@pytest.mark.slow
def test_the_results_of_one_group_are_the_same_on_devices(routings, equal_to_oracle):
    equal_to_oracle(Dropless(), OneHot(), routings["one group"], mesh={"data": 8})


def test_tokens_or_groups_that_devices_do_not_divide_are_refused(routings):
    with jax.set_mesh(Layout({"data": 8}).mesh()):
        with pytest.raises(ValueError, match="9 tokens, which the 8 devices"):
            Dropless().plan(by_tokens(3, 3), train=True)
        with pytest.raises(ValueError, match="3 groups in which experts choose, which the 8 devices"):
            Dropless().plan(jax.tree.map(lambda x: x[:3], routings["experts choose"]), train=True)


@pytest.mark.slow
def test_bfloat16_is_near_and_weights_have_float32_gradients(routings, equal_to_oracle):
    y_GSD, (dx_GSD, dweights, dweight_GR), _ = equal_to_oracle(
        Dropless(), OneHot(), routings["any"], dtype=jnp.bfloat16, tolerance=0.03
    )
    assert y_GSD.dtype == dx_GSD.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves((dweights, dweight_GR))} == {jnp.dtype("float32")}


def test_sorted_by_expert_by_hand():
    """Edges 0 to 5 of tokens 0 0 1 1 2 2; the fourth is not kept."""
    layout, sizes_E = sorted_by_expert(
        jnp.array([0, 0, 1, 1, 2, 2]),
        jnp.array([2, 0, 0, 0, 2, 0]),
        jnp.array([True, True, True, False, True, True]),
        3,
        2,
    )
    assert sizes_E.tolist() == [3, 0, 2]
    assert layout.edge.tolist() == [1, 2, 5, 0, 4, 3]
    assert layout.filled.tolist() == [True] * 5 + [False]
    assert layout.row.tolist() == [3, 0, 1, 5, 4, 2]


@pytest.mark.parametrize("num_experts", [4, 2**28 - 2, 2**28 - 1, 2**30])
@given(st.lists(st.integers(0, 4), min_size=8, max_size=8))
@settings(max_examples=10, deadline=None)
def test_the_order_is_numpys_stable_one_however_many_experts(num_experts, expert_R):
    """From 2^28 - 1 experts on, the edge and the expert of 8 edges do not fit in one number. The largest is
    that of edges that are not kept."""
    expert_R = np.array([num_experts if expert == 4 else expert for expert in expert_R], np.int32)
    expected = np.argsort(expert_R, kind="stable")
    np.testing.assert_array_equal(_order(jnp.asarray(expert_R), num_experts), expected)


def test_no_tokens():
    routing = jax.tree.map(lambda x: x[:, :0], by_tokens(2, 3)).replace(num_tokens=0)

    @jax.jit
    def layer(x_GSD, w_EDF):
        plan = Dropless().plan(routing, train=False)
        return plan.combine(plan.dispatch(x_GSD).matmul(w_EDF))

    assert layer(jnp.zeros((2, 0, 5)), jnp.ones((4, 5, 7))).shape == (2, 0, 7)


def test_another_product_is_used(routings, equal_to_oracle):
    used = []

    def product(x_RD, w_EDF, sizes_E):
        used.append(x_RD.shape)
        return jax.lax.ragged_dot(x_RD, w_EDF, sizes_E)

    equal_to_oracle(Dropless(matmul=product), OneHot(), routings["any"])
    assert used


def test_nothing_leaks():
    assert Dropless().dependence(train=True) == NONE
