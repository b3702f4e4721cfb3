"""Dispatch with capacity into buffers of C places an expert: what `moe.one_hot` computes, by two gathers.

Each group's edges are sorted by expert and priority, the first C of an expert get its places, and a place
knows its edge, as an edge its place. The experts' products are one batched product of static shapes, over
empty places too: `moe.sorted` serves the same edges and leaves these out. Buffers are what can be exchanged
between devices (`moe.expert_parallel`).

Over a mesh each device sorts its own groups. The buffers of its g groups are one of g C places an expert.

Dimensions: G groups (g of a device), S tokens of a group, R edges, E experts, C capacity, D width; M devices.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from moe import capacity as capacities
from moe import on_devices, permute
from moe.capacity import Capacity
from moe.dispatch import Buffers
from moe.leakage import Dependence
from moe.permute import Layout
from moe.routing import Routing


@dataclasses.dataclass(frozen=True)
class Buffered:
    """Serves the first C of each expert's edges; equal to `moe.one_hot.OneHot` with the same capacity.

    Attributes:
      capacity: how many tokens an expert serves.
    """

    capacity: Capacity
    exchanges: ClassVar[bool] = False

    def plan(self, routing: Routing, *, train: bool) -> "BufferedPlan":
        """See `moe.dispatch.Dispatcher`.

        Raises:
          ValueError: the mesh does not divide the groups.
        """
        on_devices.check_groups(len(routing.token))
        slots = self.capacity.slots(routing, train=train)
        layout, keep_GR = on_devices.run(lambda routing: self._layout(routing, slots), routing.bare())
        return BufferedPlan(keep_GR, routing.weight, layout, routing.num_experts, routing.num_tokens, slots)

    def dependence(self, train: bool) -> Dependence:
        """See `moe.leakage`."""
        return self.capacity.dependence(train)

    def _layout(self, routing: Routing, slots: int) -> tuple[Layout, jax.Array]:
        """The layout of a device's rows, [E, g, C] merged, with a leading axis of 1; and `keep` [g, R]."""
        groups, edges = routing.token.shape
        experts = routing.num_experts
        order_GR = capacities.order(routing, self.capacity.priority)
        count_GE = capacities.counts(routing)
        start_GE = permute.before(count_GE, 1)
        place_GR = capacities.places(routing, order_GR)
        keep_GR = routing.keep & (place_GR < slots)

        group_G = jnp.arange(groups, dtype=jnp.int32)
        row_GR = (routing.expert * groups + group_G[:, None]) * slots + jnp.minimum(place_GR, slots - 1)
        slot_C = jnp.arange(slots, dtype=jnp.int32)
        filled_GEC = slot_C[None, None] < count_GE[:, :, None]
        at_GEC = jnp.minimum(start_GE[:, :, None] + slot_C[None, None], edges - 1)
        edge_GN = jnp.take_along_axis(order_GR, at_GEC.reshape(groups, -1), axis=1) + group_G[:, None] * edges
        by_expert = lambda x: jnp.swapaxes(x.reshape(groups, experts, slots), 0, 1).reshape(-1)
        token_GR = routing.token + group_G[:, None] * routing.num_tokens
        layout = Layout(
            token_GR.reshape(-1),
            by_expert(edge_GN),
            by_expert(filled_GEC),
            row_GR.reshape(-1),
            keep_GR.reshape(-1),
            routing.choices,
        )
        return on_devices.stacked(layout), keep_GR


@struct.dataclass
class BufferedPlan:
    """See `moe.dispatch.Plan`.

    Attributes:
      keep: bool [G, R].
      weight: float32 [G, R].
      layout: of each device, [M, ...].
      num_experts: E.
      num_tokens: S.
      slots: C.
    """

    keep: jax.Array
    weight: jax.Array
    layout: Layout
    num_experts: int = struct.field(pytree_node=False)
    num_tokens: int = struct.field(pytree_node=False)
    slots: int = struct.field(pytree_node=False)

    def dispatch(self, x_GSD: jax.Array) -> Buffers:
        """Returns buffers [M, E, g C, D]."""

        def fill(layout, x_GSD):
            width = x_GSD.shape[-1]
            values_ND = permute.spread(x_GSD.reshape(-1, width), on_devices.unstacked(layout))
            return on_devices.stacked(values_ND.reshape(self.num_experts, -1, width))

        return Buffers(on_devices.run(fill, self.layout, x_GSD))

    def combine(self, rows: Buffers) -> jax.Array:
        def collect(layout, weight_GR, values_MECD):
            layout = on_devices.unstacked(layout)
            width = values_MECD.shape[-1]
            tokens = len(weight_GR) * self.num_tokens
            y_TD = permute.collect(values_MECD.reshape(-1, width), weight_GR.reshape(-1), layout, tokens)
            return y_TD.reshape(len(weight_GR), self.num_tokens, width)

        return on_devices.run(collect, self.layout, self.weight, rows.values)
