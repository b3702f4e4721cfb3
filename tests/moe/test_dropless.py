"""Dropless dispatch against the one-hot oracle, in values and all gradients, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.dropless import Dropless, sorted_by_expert
from moe.leakage import NONE
from moe.one_hot import OneHot
from moe.routing import Routing, token_choice
from training.mesh import Layout

G, S, E, K, D, F = 8, 4, 4, 2, 5, 7


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def by_tokens(expert, keep=True):
    expert_GSK = jnp.asarray(expert, jnp.int32)
    return token_choice(expert_GSK, draw(9, *expert_GSK.shape), jnp.broadcast_to(keep, expert_GSK.shape), E)


def by_experts():
    """Each expert has three tokens, which differ; edges come by expert."""
    random = np.random.default_rng(4)
    return Routing(
        token=jnp.asarray([[t for _ in range(E) for t in random.permutation(S)[:3]] for _ in range(G)]),
        expert=jnp.broadcast_to(jnp.arange(E, dtype=jnp.int32).repeat(3)[None], (G, 3 * E)),
        weight=draw(9, G, 3 * E),
        keep=jnp.asarray(random.random((G, 3 * E)) < 0.8),
        logits=None,
        probabilities=None,
        num_experts=E,
        num_tokens=S,
    )


def choices(seed, experts=E):
    """Each token's K experts, which differ."""
    random = np.random.default_rng(seed)
    return np.array([[random.permutation(experts)[:K] for _ in range(S)] for _ in range(G)])


def inputs():
    weights = {"in": draw(1, E, D, F), "b": draw(2, E, F), "out": draw(3, E, F, D)}
    return draw(0, G, S, D), weights


def layer(dispatcher, x_GSD, weights, weight_GR, routing):
    plan = dispatcher.plan(routing.replace(weight=weight_GR), train=True)
    rows = plan.dispatch(x_GSD)
    hidden = rows.matmul(weights["in"]).add(weights["b"])
    hidden = hidden.map(lambda gate, x: jnp.tanh(gate) * x, hidden)
    return plan.combine(hidden.matmul(weights["out"]))


@functools.partial(jax.jit, static_argnums=0)
def run(dispatcher, x_GSD, weights, weight_GR, routing):
    y_GSD, pull = jax.vjp(lambda *args: layer(dispatcher, *args, routing), x_GSD, weights, weight_GR)
    return y_GSD, pull(draw(5, *y_GSD.shape).astype(y_GSD.dtype))


def both(dispatcher, routing, dtype=jnp.float32):
    """The result and the gradients of x, of all weights of experts, and of those of edges."""
    x_GSD, weights = inputs()
    return run(dispatcher, x_GSD.astype(dtype), weights, routing.weight, routing)


def assert_equal_oracle(ours, oracle, tolerance=1e-5):
    def close(a, b):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert a.shape == b.shape
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b)), (a, b)

    jax.tree.map(close, ours, oracle)


ROUTINGS = {
    "any": lambda: by_tokens(choices(0)),
    "one expert has all": lambda: by_tokens(np.tile([2, 0], (G, S, 1)), np.array([True, False])),
    "an expert has nothing, and edges are not kept": lambda: by_tokens(
        choices(1, experts=E - 1), np.random.default_rng(2).random((G, S, K)) < 0.6
    ),
    "nothing is kept": lambda: by_tokens(choices(0), False),
    "experts choose": by_experts,
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "experts choose")) for n in ROUTINGS]
)
def test_equals_the_oracle(name):
    routing = ROUTINGS[name]()
    assert_equal_oracle(both(Dropless(), routing), both(OneHot(), routing))


@pytest.mark.parametrize(
    "name",
    [pytest.param("an expert has nothing, and edges are not kept", marks=pytest.mark.slow), "experts choose"],
)
def test_equals_the_oracle_on_eight_devices(name):
    routing = ROUTINGS[name]()
    expected = both(OneHot(), routing)
    with jax.set_mesh(Layout({"data": 2, "expert": 4}).mesh()):
        assert_equal_oracle(both(Dropless(), routing), expected)


def test_one_group_is_split_over_devices_between_tokens():
    """The whole batch as one group; each device still sorts its own tokens, and no sort is of them all."""
    routing = by_tokens(choices(0).reshape(1, G * S, K))
    x_GSD = draw(0, 1, G * S, D)
    _, weights = inputs()
    with jax.set_mesh(Layout({"data": 8}).mesh()):
        compiled = run.lower(Dropless(), x_GSD, weights, routing.weight, routing).compile()
        ours = compiled(x_GSD, weights, routing.weight, routing)
    assert_equal_oracle(ours, run(OneHot(), x_GSD, weights, routing.weight, routing))
    sorts = [line for line in compiled.as_text().splitlines() if " sort(" in line]
    assert sorts
    assert all(f"s32[{G * S * K // 8}]" in line for line in sorts)


def test_tokens_or_groups_that_devices_do_not_divide_are_refused():
    with jax.set_mesh(Layout({"data": 8}).mesh()):
        with pytest.raises(ValueError, match="9 tokens which the 8 devices"):
            Dropless().plan(by_tokens(np.zeros((3, 3, 1))), train=True)
        with pytest.raises(ValueError, match="3 groups, in which experts choose, which the 8 devices"):
            Dropless().plan(jax.tree.map(lambda x: x[:3], by_experts()), train=True)


@pytest.mark.slow
def test_bfloat16_is_near_and_weights_have_float32_gradients():
    routing = ROUTINGS["any"]()
    y_GSD, (dx_GSD, dweights, dweight_GR) = both(Dropless(), routing, jnp.bfloat16)
    assert y_GSD.dtype == dx_GSD.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves((dweights, dweight_GR))} == {jnp.dtype("float32")}
    assert_equal_oracle((y_GSD, (dx_GSD, dweights, dweight_GR)), both(OneHot(), routing), tolerance=0.03)


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


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=8, max_size=8))
@settings(max_examples=30, deadline=None)
def test_the_order_is_numpys_stable_one_however_many_experts(edges):
    """With so many experts that edge and expert do not fit in one number, the other sort gives the same."""
    expert_R, keep_R = (np.array(column) for column in zip(*edges, strict=True))
    few, _ = sorted_by_expert(jnp.arange(8), jnp.asarray(expert_R), jnp.asarray(keep_R), 4, 1)
    expected = np.argsort(np.where(keep_R, expert_R, 4), kind="stable")
    np.testing.assert_array_equal(few.edge, expected)
    np.testing.assert_array_equal(few.row[few.edge], np.arange(8))


def test_no_tokens():
    routing = jax.tree.map(lambda x: x[:, :0], by_tokens(np.zeros((2, 3, K)))).replace(num_tokens=0)
    plan = Dropless().plan(routing, train=False)
    assert plan.combine(plan.dispatch(jnp.zeros((2, 0, D))).matmul(inputs()[1]["in"])).shape == (2, 0, F)


def test_another_product_is_used():
    used = []

    def product(x_RD, w_EDF, sizes_E):
        used.append(x_RD.shape)
        return jax.lax.ragged_dot(x_RD, w_EDF, sizes_E)

    routing = ROUTINGS["any"]()
    assert_equal_oracle(both(Dropless(matmul=product), routing), both(OneHot(), routing))
    assert used


def test_nothing_leaks():
    assert Dropless().dependence(train=True) == NONE
