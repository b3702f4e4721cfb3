"""Dispatch with capacity by sorting: what `moe.one_hot` computes, without its masks and its empty places.

Each group's edges are sorted by expert and priority, and the first C of an expert are kept. The kept ones of
a device are then laid out as those of `moe.dropless`, one expert after the other: an expert costs what it
serves, and a place that nobody takes costs nothing.

Dimensions: G groups, R edges, C capacity.
"""

import dataclasses
from typing import ClassVar

import jax

from moe import capacity as capacities
from moe import on_devices
from moe.capacity import Capacity
from moe.dropless import Dropless, DroplessPlan
from moe.grouped_matmul import grouped_matmul
from moe.leakage import Dependence
from moe.routing import Routing
from moe.sorted_rows import Matmul


@dataclasses.dataclass(frozen=True)
class Sorted:
    """Serves the first C of each expert's edges; equal to `moe.one_hot.OneHot` with the same capacity.

    Attributes:
      capacity: how many tokens an expert serves.
      matmul: see `moe.dropless.Dropless`.
    """

    capacity: Capacity
    matmul: Matmul = grouped_matmul
    exchanges: ClassVar[bool] = False

    def plan(self, routing: Routing, *, train: bool) -> DroplessPlan:
        """See `moe.dispatch.Dispatcher`.

        Raises:
          ValueError: the mesh does not divide the groups, or splits weights over `tensor`.
        """
        on_devices.check_no_tensor("Sorted")
        on_devices.check_groups(len(routing.token))
        slots = self.capacity.slots(routing, train=train)

        def kept(routing: Routing) -> jax.Array:
            places_GR = capacities.places(routing, capacities.order(routing, self.capacity.priority))
            return routing.keep & (places_GR < slots)

        keep_GR = on_devices.run(kept, routing.bare())
        return Dropless(self.matmul).plan(routing.replace(keep=keep_GR), train=train)

    def dependence(self, train: bool) -> Dependence:
        """See `moe.leakage`."""
        return self.capacity.dependence(train)
