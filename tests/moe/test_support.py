"""The support matrix of docs/moe.md, cell by cell: what it promises equals the dense oracle in value and
gradient, and what it does not raises.

Routers are run apart: a dispatcher sees their edges alone, so that those with edges of one shape share a
compilation.
"""

import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import tables
from moe.buffered import Buffered
from moe.capacity import Capacity
from moe.dropless import Dropless
from moe.expert_choice import ExpertChoice
from moe.expert_parallel import AllToAll
from moe.expert_parallel_dropless import RaggedAllToAll
from moe.feed_forward import Context
from moe.group_limit import GroupLimit
from moe.groups import group
from moe.gshard import GShard
from moe.loss_free import LossFree
from moe.noise import Learned, Normal
from moe.one_hot import OneHot
from moe.routers import TopK
from moe.sorted import Sorted
from training import mesh as meshes
from training.mesh import Layout

B, L, D, E, F = 8, 6, 8, 8, 12
CAPACITY = Capacity(factor=0.75, tokens=L)
DOC = Path(__file__).parents[2] / "docs" / "moe.md"

ROUTERS = {
    "TopK": TopK(E, 2),
    "TopK, not renormalized": TopK(E, 2, renormalize=False, scaling=2.0),
    "TopK, k=1 (Switch)": TopK(E, 1, renormalize=False, jitter=0.1),
    "TopK, noisy": TopK(E, 2, noise=Learned()),
    "TopK, V-MoE's noise": TopK(E, 2, renormalize=False, noise=Normal()),
    "TopK, group-limited": TopK(E, 2, limit=GroupLimit(4, 2)),
    "GShard": GShard(E),
    "LossFree": LossFree(E, 2),
    "LossFree, group-limited": LossFree(E, 2, limit=GroupLimit(4, 2, best=2)),
    "ExpertChoice": ExpertChoice(E, tokens=L, factor=2.0),
    "tables.ByToken": tables.ByToken(E, functools.partial(tables.random, vocabulary=30)),
    "tables.ByDomain": tables.ByDomain(E, experts=[[0, 3], [1, 5, 6]], always=(7,)),
    "tables.ByDomainAndToken": tables.ByDomainAndToken(E, [[0, 1, 2, 3], [4, 5, 6, 7]], vocabulary=30),
}
DISPATCHERS = {
    "OneHot": OneHot(CAPACITY),
    "Sorted": Sorted(CAPACITY),
    "Buffered": Buffered(CAPACITY),
    "Dropless": Dropless(),
    "AllToAll": AllToAll(CAPACITY),
    "RaggedAllToAll": RaggedAllToAll(math.inf),
}
MESHES = {
    "one device": None,
    "data": dict(data=8),
    "fsdp": dict(fsdp=4, data=2),
    "data x expert": dict(data=2, expert=4),
    "tensor": dict(data=2, tensor=2, expert=2),
}


def table(title):
    """The cells of the table below a heading, as {(row, column): text}."""
    text = DOC.read_text().split(f"### {title}\n", 1)[1]
    lines = [line for line in re.split(r"\n#", text, maxsplit=1)[0].splitlines() if line.startswith("|")]
    rows = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]
    (_, *columns), _, *rows = rows
    return {(row[0], column): cell for row in rows for column, cell in zip(columns, row[1:], strict=True)}


ROUTER_CELLS, MESH_CELLS = table("Routers and dispatchers"), table("Dispatchers and meshes")


def test_the_tables_have_a_cell_for_each_pair():
    assert set(ROUTER_CELLS) == {(router, dispatcher) for router in ROUTERS for dispatcher in DISPATCHERS}
    assert set(MESH_CELLS) == {(dispatcher, mesh) for dispatcher in DISPATCHERS for mesh in MESHES}
    assert {*ROUTER_CELLS.values(), *MESH_CELLS.values()} == {"yes", "no"}


@functools.cache
def routed(name):
    """The routing that a router gives of a batch with padding, in training."""
    x_BLD = jax.random.normal(jax.random.key(0), (B, L, D)) + 0.5
    numbers = np.random.default_rng(0)
    context = Context(
        valid=jnp.arange(L)[None] < jnp.array(numbers.integers(3, L + 1, (B, 1))),
        tokens=jnp.array(numbers.integers(0, 30, (B, L)), jnp.int32),
        domains=jnp.array(numbers.integers(0, 2, B), jnp.int32),
        train=True,
    )
    x_GSD, tokens = group(x_BLD, context, 1)
    router = ROUTERS[name]
    rngs = {"params": jax.random.key(1), "router": jax.random.key(2)}
    routing, _ = jax.jit(router.init_with_output)(rngs, x_GSD, tokens)
    valid_GR = jnp.take_along_axis(tokens.valid, routing.token, axis=1)
    routing = routing.replace(keep=routing.keep & valid_GR).bare()
    return np.asarray(x_GSD), jax.device_get(routing)


@functools.cache
def weights():
    numbers = np.random.default_rng(1)
    return tuple(numbers.normal(size=shape).astype(np.float32) for shape in ((E, D, F), (E, F, D)))


@functools.cache
def compiled(dispatcher, mesh):
    """(x, weight of edges, w_in, w_out, routing) -> ((y, keep), gradients)."""

    def loss(x_GSD, weight_GR, w_in, w_out, routing):
        plan = dispatcher.plan(routing.replace(weight=weight_GR), train=True)
        rows = plan.dispatch(x_GSD).matmul(w_in).map(jnp.tanh).matmul(w_out)
        y_GSD = plan.combine(rows)
        return jnp.sum(jnp.sin(2 * y_GSD)), (y_GSD, plan.keep)

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))

    def call(*args):
        with jax.set_mesh(mesh):
            return gradient(*args)

    return call if mesh is not None else gradient


def run(dispatcher, router, axes):
    x_GSD, routing = routed(router)
    mesh = None if axes is None else Layout(axes).mesh()
    args = (x_GSD, routing.weight, *weights(), routing)
    if mesh is not None:
        rows, split = meshes.batch_sharding(mesh), jax.NamedSharding(mesh, jax.P("expert"))
        placed = (rows, rows, split, split, rows)
        args = tuple(jax.device_put(x, sharding) for x, sharding in zip(args, placed, strict=True))
    (_, (y_GSD, keep_GR)), gradients = jax.device_get(compiled(dispatcher, mesh)(*args))
    return y_GSD, keep_GR, gradients


def check(dispatcher, router, axes):
    """Against the oracle with the same capacity, or with none where none is dropped."""
    y, keep, gradients = run(DISPATCHERS[dispatcher], router, axes)
    drops = dispatcher in ("OneHot", "Sorted", "Buffered", "AllToAll")
    expected, served, slopes = run(OneHot(CAPACITY if drops else None), router, None)
    np.testing.assert_array_equal(keep, served)
    for ours, theirs in zip((y, *gradients), (expected, *slopes), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def slow_unless(quick, cell):
    return pytest.param(*cell, marks=() if quick else pytest.mark.slow)


# In `make test`, of routers beside TopK those whose edges differ most, on dispatchers of two kinds.
COMMON = {(router, part) for router in ("ExpertChoice", "tables.ByToken") for part in ("Sorted", "Dropless")}
QUICK_CELLS = [
    slow_unless(ROUTER_CELLS[cell] == "no" or cell[0] == "TopK" or cell in COMMON, cell)
    for cell in ROUTER_CELLS
]
QUICK_MESHES = [
    slow_unless(MESH_CELLS[cell] == "no" or cell[1] == "data x expert", cell) for cell in MESH_CELLS
]


@pytest.mark.parametrize(("router", "dispatcher"), QUICK_CELLS)
def test_a_router_on_a_dispatcher(router, dispatcher):
    if ROUTER_CELLS[router, dispatcher] == "yes":
        check(dispatcher, router, None)
    else:
        with pytest.raises(ValueError, match="allowed"):
            check(dispatcher, router, None)


def test_the_capacity_drops_something():
    _, keep, _ = run(DISPATCHERS["Sorted"], "TopK", None)
    assert keep.sum() < routed("TopK")[1].keep.sum()


@pytest.mark.parametrize(("dispatcher", "mesh"), QUICK_MESHES)
def test_a_dispatcher_on_a_mesh(dispatcher, mesh):
    if MESH_CELLS[dispatcher, mesh] == "yes":
        check(dispatcher, "TopK", MESHES[mesh])
    else:
        with pytest.raises(ValueError, match="allowed"):
            check(dispatcher, "TopK", MESHES[mesh])


@pytest.mark.slow
@pytest.mark.parametrize("router", [name for name in ROUTERS if name != "TopK"])
@pytest.mark.parametrize("dispatcher", ["AllToAll", "RaggedAllToAll"])
def test_every_router_over_eight_devices(router, dispatcher):
    check(dispatcher, router, MESHES["data x expert"])
