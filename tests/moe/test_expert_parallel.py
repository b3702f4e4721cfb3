"""Expert parallelism with and without capacity, over meshes of eight devices, against the one-hot oracle."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moe.capacity import Capacity, by_score
from moe.expert_choice import ExpertChoice
from moe.expert_parallel import AllToAll
from moe.expert_parallel_dropless import RaggedAllToAll
from moe.experts import Dense, Gated
from moe.feed_forward import Context
from moe.leakage import NONE, Dependence
from moe.mixture import REPLAYED, Mixture
from moe.one_hot import OneHot
from moe.routers import TopK
from training import collectives, hlo
from training import mesh as meshes
from training.mesh import Layout

B, L, D, E, K, F = 16, 6, 16, 8, 2, 12
GATED, BIASED, TOP_2 = Gated(F), Dense(F, use_bias=True), TopK(E, K)
TIGHT = Capacity(0.75, L)  # C = ceil(0.75 2 6 / 8) = 2
EIGHT, TWO_BY_FOUR = dict(expert=8), dict(data=2, expert=4)
MORE = [
    None,
    dict(data=8),
    dict(data=4, expert=2),
    dict(fsdp=2, expert=4),
    dict(replica=2, data=2, expert=2),
]


def layer(dispatcher, experts=GATED, router=TOP_2):
    return Mixture(router=router, experts=experts, dispatcher=dispatcher)


@functools.cache
def inputs():
    rng = np.random.default_rng(0)
    x_BLD = rng.normal(0.8, 1.0, (B, L, D)).astype(np.float32)  # some experts are asked for more
    return x_BLD, np.arange(L)[None] < rng.integers(4, L + 1, B)[:, None]


@functools.cache
def parameters(experts=GATED, router=TOP_2):
    x_BLD, valid_BL = inputs()
    module, rng = layer(OneHot(), experts, router), np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x_BLD, Context(valid=valid_BL), ()))
    return jax.tree.map(lambda x: rng.normal(0, D**-0.5, x.shape).astype(np.float32), shapes["params"])


def run(module, axes, params, choice=None, *, gradients=True):
    """Returns ((loss, (y, dropped, choice)), gradients of parameters and input), and the compiled module."""
    mesh = Layout(axes or dict(data=1)).mesh()
    rows, whole = meshes.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("expert"))
    params = {
        name: jax.device_put(part, split if name == "experts" else whole) for name, part in params.items()
    }

    def loss(params, x_BLD, valid_BL, choice):
        variables = {"params": params} | ({} if choice is None else {REPLAYED: {"choice": choice}})
        context = Context(valid=valid_BL, train=True)
        (y_BLD, _, aux), kept = module.apply(variables, x_BLD, context, (), mutable=["routing"])
        return jnp.sum(jnp.sin(3 * y_BLD)), (y_BLD, aux["dropped"], kept["routing"]["choice"])

    function = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True) if gradients else loss
    args = params, *jax.device_put((*inputs(), choice), rows)
    with jax.set_mesh(mesh):
        compiled = jax.jit(function).lower(*args).compile()
    return jax.device_get(compiled(*args)), hlo.parse(compiled.as_text()) if axes else None


@functools.cache
def chosen(experts=GATED, router=TOP_2):
    """What the router chooses, nothing dropped."""
    module = layer(OneHot(), experts, router)
    return run(module, None, parameters(experts, router), gradients=False)[0][1][2]


@functools.cache
def oracle(capacity):
    return run(layer(OneHot(capacity)), None, parameters(), chosen())[0]


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.max(np.abs(x - y)) <= 1e-5 * np.max(np.abs(y))


def also_slow(cases, slow):
    return [*cases, *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)]


def shown(value):
    """A name without addresses, so that each process calls a test the same."""
    if isinstance(value, Capacity):
        return f"{value.factor:g} {value.priority.__name__}"
    if isinstance(value, dict):
        return " ".join(f"{axis}={size}" for axis, size in value.items())
    return f"{value:g}" if isinstance(value, float) else type(value).__name__


CAPACITIES = also_slow(
    [(TWO_BY_FOUR, TIGHT)],  # these few in `make test`
    [
        *((axes, TIGHT) for axes in (EIGHT, *MORE, dict(data=2, expert=2, tensor=2))),
        (TWO_BY_FOUR, Capacity(4.0, L)),
        (EIGHT, dataclasses.replace(TIGHT, priority=by_score)),
    ],
)


@pytest.mark.parametrize(("axes", "capacity"), CAPACITIES, ids=shown)
def test_with_capacity_it_equals_the_oracle(axes, capacity):
    ((_, (y, dropped, kept)), gradients), module = run(
        layer(AllToAll(capacity)), axes, parameters(), chosen()
    )
    (_, (expected_y, expected_dropped, expected_kept)), expected = oracle(capacity)
    close((y, gradients), (expected_y, expected))
    np.testing.assert_array_equal(dropped, expected_dropped)
    np.testing.assert_array_equal(kept.keep, expected_kept.keep)
    assert (dropped.sum() > 0) == (capacity.factor < 1)
    if axes and axes.get("expert", 1) > 1:  # two forward, two backward
        slots = 2 if capacity.factor < 1 else L
        assert (
            exchanged(module, axes) == 4 * (B // meshes.batch_parts(Layout(axes).mesh())) * E * slots * D * 4
        )


def exchanged(module, axes):
    """Bytes that all-to-alls are given on a device."""
    mesh = Layout(axes).mesh()
    found, unknown = collectives.find(module, mesh.shape)
    assert not unknown
    for one in found:  # on a CPU, the logits that the router sorts; and gradients
        assert one.kind in ("all-to-all", "all-reduce") or one.operand_bytes <= B // 8 * L * E * 4
    return sum(times * one.operand_bytes for one, times in found.items() if one.kind == "all-to-all")


RAGGED = also_slow(
    [(EIGHT, 1.0, GATED)],
    [
        (TWO_BY_FOUR, math.inf, GATED),
        (EIGHT, 1.0, BIASED),
        *((axes, math.inf, BIASED) for axes in (EIGHT, *MORE)),
        (TWO_BY_FOUR, 1.0, GATED),
        (dict(data=4, expert=2), 1.0, BIASED),
        (EIGHT, 8.0, GATED),
    ],
)


@pytest.mark.parametrize(("axes", "factor", "experts"), RAGGED, ids=shown)
def test_without_capacity_it_equals_the_oracle(axes, factor, experts):
    """The oracle is told what had no room, which is checked apart."""
    params, choice = parameters(experts), chosen(experts)
    ((_, (y, dropped, kept)), gradients), _ = run(
        layer(RaggedAllToAll(factor), experts), axes, params, choice
    )
    ((_, (expected_y, _, _)), expected), _ = run(layer(OneHot(), experts), None, params, kept)
    close((y, gradients), (expected_y, expected))
    devices = (axes or {}).get("expert", 1)
    np.testing.assert_array_equal(kept.keep, served(choice, factor, devices))
    np.testing.assert_array_equal(dropped, (choice.keep & ~kept.keep).sum(1))
    assert (dropped.sum() > 0) == (factor < devices)


def served(choice, factor, devices):
    """The edges that have room, one at a time. A device has a run of rows; `expert` is the inner axis."""
    rows = B // 8
    keep = np.array(choice.keep)
    for first in range(0, B, rows * devices):  # the rows of the devices that exchange
        room = np.full(devices, math.ceil(min(factor, devices) * rows * L * K))
        for begin in range(first, first + rows * devices, rows):
            edges = [(choice.expert[b, r], b, r) for b in range(begin, begin + rows) for r in range(L * K)]
            for expert, b, r in edges:
                target = expert // (E // devices)
                if keep[b, r]:
                    keep[b, r] = room[target] > 0
                    room[target] -= 1
    return keep


@pytest.mark.slow
@pytest.mark.parametrize("dispatcher", [AllToAll(Capacity(4.0, L)), RaggedAllToAll(math.inf)], ids=shown)
def test_experts_may_choose(dispatcher):
    router = ExpertChoice(E, L, factor=1.0)
    params, choice = parameters(BIASED, router), chosen(BIASED, router)
    ((_, (y, _, kept)), gradients), _ = run(layer(dispatcher, BIASED, router), TWO_BY_FOUR, params, choice)
    ((_, (expected_y, _, _)), expected), _ = run(layer(OneHot(), BIASED, router), None, params, choice)
    close((y, gradients), (expected_y, expected))
    np.testing.assert_array_equal(kept.keep, choice.keep)


@pytest.mark.parametrize(
    "dispatcher",
    [AllToAll(Capacity(4.0, L)), pytest.param(RaggedAllToAll(math.inf), marks=pytest.mark.slow)],
    ids=shown,
)
def test_the_routing_itself_is_that_of_one_device(dispatcher):
    """Where no two experts are so close that a sum in another order could tell."""
    x_BLD, _ = inputs()
    probability = jax.nn.softmax(x_BLD @ parameters()["router"]["score"]["kernel"])
    best = np.sort(np.asarray(probability), axis=-1)[..., ::-1]
    assert (best[..., :K] - best[..., 1 : K + 1]).min() > 1e-5
    (_, (_, _, choice)), module = run(layer(dispatcher), TWO_BY_FOUR, parameters(), gradients=False)
    jax.tree.map(np.testing.assert_array_equal, choice, chosen())
    if isinstance(dispatcher, AllToAll):
        assert exchanged(module, TWO_BY_FOUR) == 2 * (B // 8) * E * L * D * 4


def test_what_the_mesh_does_not_divide_is_refused():
    x_BLD, valid_BL = inputs()

    def trace(dispatcher, rows, router=TOP_2):
        module, context = layer(dispatcher, router=router), Context(valid=valid_BL[:rows])
        jax.eval_shape(lambda: module.init(jax.random.key(0), x_BLD[:rows], context, ()))

    with jax.set_mesh(Layout(EIGHT).mesh()):
        for dispatcher in (AllToAll(TIGHT), RaggedAllToAll(2.0)):
            with pytest.raises(ValueError, match=r"makes 4 groups, which the 8 devices.*expert=8"):
                trace(dispatcher, 4)
            with pytest.raises(ValueError, match=r"num_experts is 12; allowed: a multiple of .*expert=8"):
                trace(dispatcher, 8, TopK(12, K))
    tensor = Layout(dict(data=4, tensor=2)).mesh()
    with jax.set_mesh(tensor), pytest.raises(ValueError, match="tensor=2; allowed with RaggedAllToAll: 1"):
        trace(RaggedAllToAll(2.0), B)


def test_what_they_say_of_leaks():
    assert AllToAll(TIGHT).dependence(True) == Dependence(earlier=True)
    assert RaggedAllToAll(2.0).dependence(False) == Dependence(batch=True, earlier=True)
    assert RaggedAllToAll(2.0, evaluation_factor=math.inf).dependence(False) == NONE
    assert RaggedAllToAll(2.0, evaluation_factor=math.inf).dependence(True).batch
