"""Where rows go between devices, worked out by hand, and that the form for a CPU is the other's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import on_devices
from moe.exchange import Routes, _gathered, _sent, exchange, reordered
from training.mesh import Layout

# Of source and target: the first of two devices keeps one row and gets one, the second gets three.
ROUTES = Routes(
    starts=jnp.array([[0, 1], [2, 3]]), sizes=jnp.array([[1, 3], [1, 0]]), lands=jnp.array([[0, 0], [1, 3]])
)
ROWS = np.arange(1, 17, dtype=np.float32).reshape(4, 4, 1)
THERE = [[1, 7, 0], [2, 3, 4], [9, 15, 0], [10, 11, 12]]


def on_four_devices(function, *args):
    """Two pairs of devices that exchange."""
    with jax.set_mesh(Layout(dict(data=2, expert=2)).mesh(jax.devices()[:4])):
        return jax.device_get(jax.jit(function)(*args))


def as_documented(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """`jax.lax.ragged_all_to_all`, which a CPU does not have, row by row from what all devices have."""
    here = jax.lax.axis_index(axis_name)
    given = operand, input_offsets, send_sizes, output_offsets
    operands, starts, sizes, lands = (jax.lax.all_gather(x, axis_name) for x in given)
    for source in range(len(operands)):
        size = jnp.where(sizes[source, here] == recv_sizes[source], recv_sizes[source], -(10**6))
        for row in range(operand.shape[0]):
            moved = operands[source, jnp.minimum(starts[source, here] + row, len(operand) - 1)]
            at = jnp.where(row < size, lands[source, here] + row, len(output))  # out of bounds: dropped
            output = output.at[at].set(moved, mode="drop")
    return output


def test_the_form_for_a_cpu_moves_what_the_other_does(monkeypatch):
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", as_documented)

    def both(x_MND):
        here = lambda x: jnp.stack([form(3, x[0], ROUTES) for form in (_sent, _gathered)])[None]
        return on_devices.run(here, x_MND)

    sent, gathered = on_four_devices(both, ROWS).swapaxes(0, 1)
    np.testing.assert_array_equal(sent[:, :, 0], THERE)
    np.testing.assert_array_equal(gathered, sent)


def test_the_gradient_sends_rows_back():
    """Each row comes back to where it was; the second device's first two and last went nowhere."""

    def there_and_back(x_MND):
        send = lambda x: on_devices.stacked(exchange(on_devices.unstacked(x), ROUTES, 3))
        y_MPD, pull = jax.vjp(lambda x: on_devices.run(send, x), x_MND)
        return y_MPD, pull(10 * y_MPD)[0]

    y_MPD, dx_MND = on_four_devices(there_and_back, ROWS)
    np.testing.assert_array_equal(y_MPD[:, :, 0], THERE)
    back = [[10, 20, 30, 40], [0, 0, 70, 0], [90, 100, 110, 120], [0, 0, 150, 0]]
    np.testing.assert_array_equal(dx_MND[:, :, 0], back)


@pytest.mark.parametrize("order", [[2, 0, 1], [0, 1, 2]])
def test_the_gradient_of_another_order_is_a_gather_too(order):
    inverse = np.argsort(order)
    x_PD, g_PD = jnp.asarray(ROWS[0, :3]), jnp.asarray(ROWS[1, :3])
    function = lambda x: reordered(x, jnp.array(order), jnp.asarray(inverse))
    y_PD, pull = jax.vjp(function, x_PD)
    np.testing.assert_array_equal(y_PD, x_PD[jnp.array(order)])
    np.testing.assert_array_equal(pull(g_PD)[0], jax.vjp(lambda x: x[jnp.array(order)], x_PD)[1](g_PD)[0])
    assert "scatter" not in jax.jit(lambda g: pull(g)[0]).lower(g_PD).as_text()
