"""Dispatch with capacity, sorted and buffered, against the one-hot oracle: who is served, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import capacity
from moe.buffered import Buffered
from moe.capacity import Capacity
from moe.one_hot import OneHot
from moe.sorted import Sorted
from training.mesh import Layout

S = 4  # tokens of a group

DROPPING = ["any", "an expert has nothing, and edges are not kept"]


@pytest.fixture(params=[Sorted, Buffered])
def kind(request):
    return request.param


@pytest.mark.parametrize(
    "name", [*DROPPING, "nothing is kept", pytest.param("experts choose", marks=pytest.mark.slow)]
)
def test_equals_the_oracle(routings, equal_to_oracle, kind, name):
    limit = Capacity(factor=0.75, tokens=S)
    routing = routings[name]
    *_, keep = equal_to_oracle(kind(limit), OneHot(limit), routing)
    assert (np.asarray(routing.keep & ~keep).sum() > 0) == (name in DROPPING)


# One place an expert, and more than there are tokens.
EXTREMES = [(capacity.by_choice, 0.1), (capacity.by_score, 0.1), (capacity.by_choice, 100)]


@pytest.mark.slow
@pytest.mark.parametrize(("priority", "factor"), EXTREMES)
def test_priorities_and_extremes_of_capacity(routings, equal_to_oracle, kind, priority, factor):
    limit = Capacity(factor=factor, tokens=S, priority=priority)
    equal_to_oracle(kind(limit), OneHot(limit), routings["any"])


def test_who_is_served_by_priorities_and_extremes_of_capacity(routings, kind):
    limits = [Capacity(factor=factor, tokens=S, priority=priority) for priority, factor in EXTREMES]

    @jax.jit
    def served(routing):
        return [[part(limit).plan(routing, train=True).keep for part in (kind, OneHot)] for limit in limits]

    kept = served(routings["any"])
    for ours, oracle in kept:
        np.testing.assert_array_equal(ours, oracle)
    assert [int(ours.sum()) for ours, _ in kept][2] == routings["any"].keep.sum() > kept[0][0].sum()
    assert (kept[0][0] != kept[1][0]).any()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(Buffered, "an expert has nothing, and edges are not kept", marks=pytest.mark.slow),
        pytest.param(Sorted, "an expert has nothing, and edges are not kept", marks=pytest.mark.slow),
        pytest.param(Sorted, "experts choose", marks=pytest.mark.slow),
        pytest.param(Buffered, "experts choose", marks=pytest.mark.slow),
    ],
)
def test_equals_the_oracle_on_eight_devices(routings, equal_to_oracle, kind, name):
    limit = Capacity(factor=0.75, tokens=S)
    equal_to_oracle(kind(limit), OneHot(limit), routings[name], mesh={"data": 4, "expert": 2})


def test_evaluation_has_its_own_capacity(routings, kind):
    limit = Capacity(factor=0.25, tokens=S, evaluation_factor=10)
    served = lambda train: kind(limit).plan(routings["any"], train=train).keep.all()
    assert not jax.jit(served, static_argnums=0)(True)
    assert jax.jit(served, static_argnums=0)(False)
    assert kind(limit).dependence(train=True) == limit.dependence(train=True)


@pytest.mark.slow
def test_bfloat16_is_near(routings, equal_to_oracle):
    limit = Capacity(factor=1, tokens=S)
    y_GSD, (dx_GSD, _, _), _ = equal_to_oracle(
        Buffered(limit), OneHot(limit), routings["any"], dtype=jnp.bfloat16, tolerance=0.03
    )
    assert y_GSD.dtype == dx_GSD.dtype == jnp.bfloat16


def test_groups_that_devices_do_not_divide_are_refused(routings, kind):
    routing = jax.tree.map(lambda x: x[:3], routings["any"])
    with (
        jax.set_mesh(Layout({"data": 8}).mesh()),
        pytest.raises(ValueError, match="3 groups, which the 8 devices"),
    ):
        kind(Capacity(factor=1, tokens=S)).plan(routing, train=True)
