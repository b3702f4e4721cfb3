"""Rows sent between the devices along the mesh axis `expert`, as many as each has for the other.

`exchange` is `jax.lax.ragged_all_to_all` with a gradient: the same rows sent back. XLA has no such operation
on a CPU. There all rows are gathered and each device takes its own: the same values, for tests.

Dimensions: n devices along `expert`; of one, N rows that leave, P places for rows that arrive, D width.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from moe import on_devices


@struct.dataclass
class Routes:
    """What devices along `expert` send each other; each array is int32 [n, n], of source and target.

    Attributes:
      starts: the first row of it, on the source.
      sizes: how many rows.
      lands: where they come to lie, on the target.
    """

    starts: jax.Array
    sizes: jax.Array
    lands: jax.Array

    def back(self) -> "Routes":
        """The same rows in the other direction."""
        return Routes(self.lands.T, self.sizes.T, self.starts.T)


@jax.custom_vjp
def reordered(x_PD: jax.Array, order_P: jax.Array, inverse_P: jax.Array) -> jax.Array:
    """Returns x[order]; the gradient is a gather as well, by the inverse."""
    return x_PD[order_P]


reordered.defvjp(
    lambda x, order, inverse: (x[order], inverse),
    lambda inverse, g: (g[inverse], None, None),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def exchange(x_ND: jax.Array, routes: Routes, places: int) -> jax.Array:
    """Sends rows to the devices along `expert`; its gradient sends them back.

    Args:
      x_ND: what this device has.
      routes: the same on all of them.
      places: P.

    Returns:
      [P, D]; zero where nothing has come.
    """
    if on_devices.expert_parts() == 1:
        return x_ND
    return jax.lax.platform_dependent(
        x_ND,
        routes,
        cpu=functools.partial(_gathered, places),
        default=functools.partial(_sent, places),
    )


def _exchange_forward(x_ND, routes, places):
    return exchange(x_ND, routes, places), (routes, len(x_ND))


def _exchange_backward(places, kept, g_PD):
    routes, rows = kept
    return exchange(g_PD, routes.back(), rows), None


exchange.defvjp(_exchange_forward, _exchange_backward)


def _sent(places: int, x_ND: jax.Array, routes: Routes) -> jax.Array:
    here = jax.lax.axis_index(on_devices.EXPERT)
    return jax.lax.ragged_all_to_all(
        x_ND,
        jnp.zeros((places, x_ND.shape[1]), x_ND.dtype),
        routes.starts[here],
        routes.sizes[here],
        routes.lands[here],
        routes.sizes[:, here],
        axis_name=on_devices.EXPERT,
    )


def _gathered(places: int, x_ND: jax.Array, routes: Routes) -> jax.Array:
    here = jax.lax.axis_index(on_devices.EXPERT)
    all_nND = jax.lax.all_gather(x_ND, on_devices.EXPERT)
    starts_n, sizes_n, lands_n = (x[:, here][:, None] for x in (routes.starts, routes.sizes, routes.lands))
    row_P = jnp.arange(places, dtype=jnp.int32)[None]
    mine_nP = (row_P >= lands_n) & (row_P < lands_n + sizes_n)
    source_P = jnp.argmax(mine_nP, axis=0)
    at_P = jnp.take_along_axis(starts_n + row_P - lands_n, source_P[None], axis=0)[0]
    return jnp.where(mine_nP.any(0)[:, None], all_nND[source_P, at_P], 0)
