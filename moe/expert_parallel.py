"""Expert parallelism with capacity: each device has some of the experts, and tokens travel to them and back.

The batch is split over the mesh axes `data` (`replica`, `fsdp`) and `expert` together, expert weights over
`expert`; a config's rule for them is `("experts/", ("expert", None, None))`. A device fills C places for each
expert from each of its own groups, and an all-to-all along `expert` gives every device the places of its own
experts; a second one brings them back (Lepikhin et al., 2021, "GShard: Scaling Giant Models with Conditional
Computation and Automatic Sharding"). Tokens go nowhere else, and the weights stay where they are.

Between the two lies an array [M, E, N, D] with E split along `expert` and M along the other axes. The
experts' products are ordinary ones, and the compiler splits them further as the rules for `tensor` and `fsdp`
say. Who is served is the same on every mesh.

With g groups on a device, each all-to-all is given g E C D values there, and n devices along `expert` send
(n - 1) / n of them. A layer takes two forward and two backward; where its forward pass is computed again
(`backbones.remat`), two more.

Dimensions: G groups (g of a device), S tokens of a group, E experts, C capacity, n devices along `expert`,
M devices along the other batch axes, N = n g C places of an expert, D width.
"""

import dataclasses
from typing import ClassVar

import jax
from flax import struct

from moe import on_devices
from moe.buffered import Buffered, BufferedPlan
from moe.capacity import Capacity
from moe.dispatch import Buffers
from moe.leakage import Dependence
from moe.routing import Routing


@dataclasses.dataclass(frozen=True)
class AllToAll:
    """See above. Without a mesh, or where `expert` has size 1, it is `moe.buffered.Buffered`.

    Attributes:
      capacity: how many tokens an expert serves.
    """

    capacity: Capacity
    exchanges: ClassVar[bool] = True

    def plan(self, routing: Routing, *, train: bool) -> "AllToAllPlan":
        """See `moe.dispatch.Dispatcher`.

        Raises:
          ValueError: the mesh does not divide the groups or the experts.
        """
        on_devices.check_groups(len(routing.token))
        on_devices.check_experts(routing.num_experts)
        here = Buffered(self.capacity)
        plans = on_devices.run(lambda routing: here.plan(routing, train=train), routing.bare())
        return AllToAllPlan(plans)

    def dependence(self, train: bool) -> Dependence:
        """See `moe.leakage`."""
        return self.capacity.dependence(train)


@struct.dataclass
class AllToAllPlan:
    """See `moe.dispatch.Plan`.

    Attributes:
      here: the plans of all devices for their own groups.
    """

    here: BufferedPlan

    @property
    def keep(self) -> jax.Array:
        return self.here.keep

    def dispatch(self, x_GSD: jax.Array) -> Buffers:
        """Returns buffers [M, E, N, D]."""

        def send(here, x_GSD):
            return _exchange(here.dispatch(x_GSD).values, split=1, join=2)

        return Buffers(on_devices.run(send, self.here, x_GSD, result=on_devices.exchanged_spec()))

    def combine(self, rows: Buffers) -> jax.Array:
        def receive(here, values_MEND):
            return here.combine(Buffers(_exchange(values_MEND, split=2, join=1)))

        given = (on_devices.groups_spec(), on_devices.exchanged_spec())
        return on_devices.run(receive, self.here, rows.values, given=given)


def _exchange(values_MEND: jax.Array, *, split: int, join: int) -> jax.Array:
    """Devices along `expert` swap parts: [1, E, g C, D] becomes [1, E / n, n g C, D], or the other way."""
    if on_devices.expert_parts() == 1:
        return values_MEND
    return jax.lax.all_to_all(values_MEND, on_devices.EXPERT, split, join, tiled=True)
