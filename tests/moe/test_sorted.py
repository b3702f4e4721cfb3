"""Dispatch with capacity, sorted and buffered, against the one-hot oracle: who is served, and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import capacity
from moe.buffered import Buffered
from moe.capacity import Capacity
from moe.one_hot import OneHot
from moe.routing import Routing, token_choice
from moe.sorted import Sorted
from training.mesh import Layout

G, S, E, K, D, F = 8, 4, 4, 2, 5, 7


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def by_tokens(keep=True, experts=E):
    """Each token's K experts, which differ."""
    random = np.random.default_rng(0)
    expert_GSK = np.array([[random.permutation(experts)[:K] for _ in range(S)] for _ in range(G)], np.int32)
    return token_choice(jnp.asarray(expert_GSK), draw(9, G, S, K), jnp.broadcast_to(keep, (G, S, K)), E)


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


ROUTINGS = {
    "any": by_tokens,
    "an expert has nothing, and edges are not kept": lambda: by_tokens(
        np.random.default_rng(2).random((G, S, K)) < 0.6, experts=E - 1
    ),
    "nothing is kept": lambda: by_tokens(False),
    "experts choose": by_experts,
}


@functools.partial(jax.jit, static_argnums=0)
def run(dispatcher, x_GSD, weights, weight_GR, routing):
    def layer(x_GSD, weights, weight_GR):
        plan = dispatcher.plan(routing.replace(weight=weight_GR), train=True)
        rows = plan.dispatch(x_GSD).matmul(weights["in"]).add(weights["b"])
        return plan.combine(rows.map(jnp.tanh).matmul(weights["out"])), plan.keep

    y_GSD, pull, keep_GR = jax.vjp(layer, x_GSD, weights, weight_GR, has_aux=True)
    return y_GSD, pull(draw(5, *y_GSD.shape).astype(y_GSD.dtype)), keep_GR


def both(dispatcher, routing, dtype=jnp.float32):
    """The result, the gradients of x, of all weights of experts and of those of edges, and who is served."""
    weights = {"in": draw(1, E, D, F), "b": draw(2, E, F), "out": draw(3, E, F, D)}
    return run(dispatcher, draw(0, G, S, D).astype(dtype), weights, routing.weight, routing)


def assert_equal_oracle(ours, oracle, tolerance=1e-5):
    np.testing.assert_array_equal(ours[2], oracle[2])

    def close(a, b):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert a.shape == b.shape
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b)), (a, b)

    jax.tree.map(close, ours[:2], oracle[:2])


@pytest.fixture(params=[Sorted, Buffered])
def kind(request):
    return request.param


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "experts choose")) for n in ROUTINGS]
)
def test_equals_the_oracle(kind, name):
    limit = Capacity(factor=0.75, tokens=S)
    routing = ROUTINGS[name]()
    ours = both(kind(limit), routing)
    assert_equal_oracle(ours, both(OneHot(limit), routing))
    dropped = np.asarray(routing.keep & ~ours[2]).sum()
    assert (dropped > 0) == (name in ("any", "an expert has nothing, and edges are not kept"))


@pytest.mark.parametrize(
    ("kind", "priority", "factor"),
    [
        (Sorted, capacity.by_choice, 0.1),
        (Buffered, capacity.by_score, 0.1),
        (Buffered, capacity.by_choice, 100),
    ],
)
def test_priorities_and_extremes_of_capacity(kind, priority, factor):
    """One place an expert, and more than there are tokens."""
    limit = Capacity(factor=factor, tokens=S, priority=priority)
    assert_equal_oracle(both(kind(limit), by_tokens()), both(OneHot(limit), by_tokens()))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Buffered, "an expert has nothing, and edges are not kept"),
        pytest.param(Sorted, "an expert has nothing, and edges are not kept", marks=pytest.mark.slow),
        pytest.param(Sorted, "experts choose", marks=pytest.mark.slow),
        pytest.param(Buffered, "experts choose", marks=pytest.mark.slow),
    ],
)
def test_equals_the_oracle_on_eight_devices(kind, name):
    limit, routing = Capacity(factor=0.75, tokens=S), ROUTINGS[name]()
    expected = both(OneHot(limit), routing)
    with jax.set_mesh(Layout({"data": 4, "expert": 2}).mesh()):
        assert_equal_oracle(both(kind(limit), routing), expected)


def test_evaluation_has_its_own_capacity(kind):
    limit = Capacity(factor=0.25, tokens=S, evaluation_factor=10)
    served = {
        train: jax.jit(lambda r, t=train: kind(limit).plan(r, train=t).keep.all()) for train in (True, False)
    }
    assert not served[True](by_tokens())
    assert served[False](by_tokens())
    assert kind(limit).dependence(train=True) == limit.dependence(train=True)


@pytest.mark.slow
def test_bfloat16_is_near():
    limit = Capacity(factor=1, tokens=S)
    ours = both(Buffered(limit), by_tokens(), jnp.bfloat16)
    assert ours[0].dtype == ours[1][0].dtype == jnp.bfloat16
    assert_equal_oracle(ours, both(OneHot(limit), by_tokens()), tolerance=0.03)


def test_groups_that_devices_do_not_divide_are_refused(kind):
    routing = jax.tree.map(lambda x: x[:3], by_tokens())
    with (
        jax.set_mesh(Layout({"data": 8}).mesh()),
        pytest.raises(ValueError, match="3 groups, which 8 devices"),
    ):
        kind(Capacity(factor=1, tokens=S)).plan(routing, train=True)
