"""What fits into the buffer of a device, and where rows go, worked out by hand; values in
test_expert_parallel.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moe.expert_parallel_dropless import RaggedAllToAll
from moe.routing import token_choice
from training import collectives, hlo
from training.mesh import BATCH_AXES, Layout


def routing(expert_GS, num_experts=2):
    """Each token has one expert; -1 is padding."""
    expert_GSK = jnp.asarray(expert_GS, jnp.int32)[:, :, None]
    ones = jnp.ones(expert_GSK.shape, jnp.float32)
    return token_choice(jnp.maximum(expert_GSK, 0), ones, expert_GSK >= 0, num_experts)


def on_two_devices(function, *args):
    with jax.set_mesh(Layout(dict(expert=2)).mesh(jax.devices()[:2])):
        return jax.device_get(jax.jit(function)(*args))


@functools.cache
def kept(factor):
    """One function for all cases: compiled once for a number of experts."""
    return lambda routing: RaggedAllToAll(factor).plan(routing, train=True).keep


def keep(expert_GS, factor, num_experts=2):
    return on_two_devices(kept(factor), routing(expert_GS, num_experts)).tolist()


def test_what_fits_into_the_buffer():
    # A device has two edges: places for 2 or 3 rows, or for all 4. The first source comes first.
    assert keep([[0, 0], [0, 0]], 1.0) == [[True, True], [False, False]]
    assert keep([[0, 0], [0, 0]], 1.5) == [[True, True], [True, False]]
    assert keep([[0, 0], [0, 0]], 2.0) == [[True, True], [True, True]]
    assert keep([[0, 1], [0, 0]], 1.0) == [[True, True], [True, False]]
    assert keep([[0, 1], [1, 0]], 1.0) == [[True, True], [True, True]]
    assert keep([[-1, 1], [1, 1]], 1.0) == [[False, True], [True, False]]
    assert keep([[-1, 0], [0, -1]], 1.0) == [[False, True], [True, False]]


def test_earlier_edges_go_first_whatever_their_expert():
    # Device 0 has experts 0 and 1 and places for 2 rows.
    assert keep([[1, 0], [0, 1]], 1.0, 4) == [[True, True], [False, False]]
    assert keep([[1, 2], [1, 0]], 1.0, 4) == [[True, True], [True, False]]


def test_rows_come_to_their_expert_and_back():
    x_GSD = jnp.array([[[1.0], [2.0]], [[3.0], [4.0]]])
    w_EDF = jnp.array([[[10.0]], [[100.0]], [[1000.0]], [[10000.0]]])

    used = []

    def product(x_PD, w_EDF, sizes_E):
        used.append((x_PD.shape, w_EDF.shape))
        return jax.lax.ragged_dot(x_PD, w_EDF, sizes_E)

    def there_and_back(routing, x_GSD, w_EDF):
        plan = RaggedAllToAll(1.5, matmul=product).plan(routing, train=True)
        rows = plan.dispatch(x_GSD)
        return rows.values, rows.sizes, plan.combine(rows.matmul(w_EDF))

    # Device 0 has experts 0 and 1 and places for 3 rows.
    values, sizes, y_GSD = on_two_devices(there_and_back, routing([[1, 0], [0, 3]], 4), x_GSD, w_EDF)
    np.testing.assert_array_equal(values[:, :, 0], [[2, 3, 1], [4, 0, 0]])
    np.testing.assert_array_equal(sizes, [[2, 1], [0, 1]])
    np.testing.assert_array_equal(y_GSD[:, :, 0], [[100, 20], [30, 40000]])
    assert used == [((3, 1), (2, 1, 1))]


@pytest.mark.parametrize("factors", [dict(buffer_factor=0.9), dict(buffer_factor=2, evaluation_factor=0)])
def test_a_factor_has_room_for_at_least_what_balance_sends(factors):
    with pytest.raises(ValueError, match=r"_factor is 0(\.9)?; allowed: at least 1"):
        RaggedAllToAll(**factors)


def test_the_evaluation_has_a_factor_of_its_own():
    dispatcher = RaggedAllToAll(1.0, evaluation_factor=2.0)
    plan = lambda routing: [dispatcher.plan(routing, train=train).keep for train in (True, False)]
    train, evaluation = on_two_devices(plan, routing([[0, 0], [0, 0]]))
    assert (train.sum(), evaluation.sum()) == (2, 4)


@pytest.mark.tpu_plan
def test_it_compiles_for_a_pod_with_gradients(tpu_devices):
    """There the rows are sent as they are, twice forward and twice backward."""
    mesh = Layout(dict(data=4, expert=4)).mesh(tpu_devices("v5e:4x4"))
    place = lambda shape, dtype, spec: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    rows = PartitionSpec(BATCH_AXES)
    x_GSD = place((32, 128, 256), jnp.bfloat16, rows)
    expert_GS = place((32, 128), jnp.int32, rows)
    w_EDF = place((8, 256, 256), jnp.float32, PartitionSpec("expert"))

    def loss(x_GSD, w_EDF, expert_GS):
        plan = RaggedAllToAll(2.0).plan(routing(expert_GS, 8), train=True)
        y_GSD = plan.combine(plan.dispatch(x_GSD).matmul(w_EDF).map(jnp.tanh))
        return jnp.square(y_GSD.astype(jnp.float32)).sum()

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss, argnums=(0, 1)), out_shardings=(x_GSD.sharding, w_EDF.sharding))
        module = hlo.parse(step.lower(x_GSD, w_EDF, expert_GS).compile().as_text())
    found, _ = collectives.find(module, mesh.shape)
    sent = [one for one, times in found.items() if one.kind == "ragged-all-to-all" for _ in range(int(times))]
    # 256 edges a device; 512 places.
    assert sorted(one.operand_bytes for one in sent) == [256 * 512] * 2 + [512 * 512] * 2
    assert {one.axes for one in sent} == {("expert",)}
    assert "all-gather" not in {one.kind for one in found}
