"""Expert parallelism without capacity: as many rows travel to a device as its experts were chosen for.

Each choice of an expert by a token is an edge and one row. Shapes are fixed when a program is compiled, so a
device that has N edges of its own, those of padding included, receives into a buffer of

    P = ceil(buffer_factor N)

rows, and of no more than n N for n devices along the mesh axis `expert`, which is enough whatever is chosen:
with `buffer_factor` = n, or infinity, nothing is ever dropped. 1 is enough where all devices get the same.
What does not fit is dropped: of the rows for a device, those of the later sources along `expert`, and of one
source's, the later edges. All devices know what all would send, so the sender has `keep=False` for these
edges, and they are counted in `dropped` as with any capacity.

Unlike a capacity, which is of a group, the buffer is of a device: with a factor below n, what is dropped
depends on the mesh, and on the whole batch, though on no later token of the same text.

A device sorts its edges by expert, tells the others how many it has for each (4 E bytes), and sends
(`moe.exchange`). What arrives is sorted by expert once more, and `moe.grouped_matmul` multiplies it with the
weights of the device: the grouped products of Gale et al. (2023), "MegaBlocks: Efficient Sparse Training with
Mixture-of-Experts", under expert parallelism. A layer sends its rows twice forward and twice backward; where
its forward pass is computed again (`backbones.remat`), twice more.

Dimensions: G groups, S tokens of a group, R edges of a group, E experts, D, F widths; M devices, and of each
T tokens, N edges, e experts, P places of the buffer; n devices along `expert`.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from moe import on_devices, permute
from moe.dropless import sorted_by_expert
from moe.exchange import Routes, exchange, reordered
from moe.grouped_matmul import grouped_matmul
from moe.leakage import NONE, Dependence
from moe.permute import Layout
from moe.routing import Routing
from moe.sorted_rows import Matmul, SortedRows


@dataclasses.dataclass(frozen=True)
class RaggedAllToAll:
    """See above. Without a mesh, or where `expert` has size 1, nothing is sent and nothing dropped.

    Attributes:
      buffer_factor: rows that a device has room for, over its own edges; infinity for all that can come.
      evaluation_factor: the same where nothing is trained; None for buffer_factor.
      matmul: see `moe.dropless.Dropless`.

    Raises:
      ValueError: a factor is below 1.
    """

    buffer_factor: float
    evaluation_factor: float | None = None
    matmul: Matmul = grouped_matmul
    exchanges: ClassVar[bool] = True

    def __post_init__(self):
        for field in ("buffer_factor", "evaluation_factor"):
            value = getattr(self, field)
            if value is not None and not value >= 1:
                raise ValueError(f"{field} is {value}; allowed: at least 1")

    def plan(self, routing: Routing, *, train: bool) -> "RaggedPlan":
        """See `moe.dispatch.Dispatcher`.

        Raises:
          ValueError: the mesh does not divide the groups or the experts, or splits weights over `tensor`.
        """
        on_devices.check_groups(len(routing.token))
        on_devices.check_experts(routing.num_experts)
        on_devices.check_no_tensor("RaggedAllToAll")

        def plan(routing):
            keep_GR, here = _journey(self._factor(train), routing)
            return keep_GR, on_devices.stacked(here)

        keep_GR, here = on_devices.run(plan, routing.bare())
        return RaggedPlan(keep_GR, routing.weight, here, routing.num_tokens, routing.num_experts, self.matmul)

    def dependence(self, train: bool) -> Dependence:
        """See `moe.leakage`: a finite factor is enough or not, as the mesh is. Texts lie one after the other,
        and earlier edges go first."""
        return NONE if self._factor(train) == math.inf else Dependence(batch=True, earlier=True)

    def _factor(self, train: bool) -> float:
        return self.buffer_factor if train or self.evaluation_factor is None else self.evaluation_factor


@struct.dataclass
class RaggedPlan:
    """See `moe.dispatch.Plan`.

    Attributes:
      keep: bool [G, R].
      weight: float32 [G, R].
      here: of each device, with a leading axis [M].
      num_tokens: S.
      num_experts: E.
      product: see `RaggedAllToAll.matmul`.
    """

    keep: jax.Array
    weight: jax.Array
    here: "Journey"
    num_tokens: int = struct.field(pytree_node=False)
    num_experts: int = struct.field(pytree_node=False)
    product: Matmul = struct.field(pytree_node=False)

    def dispatch(self, x_GSD: jax.Array) -> SortedRows:
        def send(here, x_GSD):
            here = on_devices.unstacked(here)
            leaving_ND = permute.spread(x_GSD.reshape(-1, x_GSD.shape[-1]), here.layout)
            arriving_PD = exchange(leaving_ND, here.routes, len(here.by_expert))
            return on_devices.stacked(reordered(arriving_PD, here.by_expert, here.as_arrived))

        values_MPD = on_devices.run(send, self.here, x_GSD)
        return SortedRows(values_MPD, self.here.sizes, self.num_experts, self.product, split=True)

    def combine(self, rows: SortedRows) -> jax.Array:
        def receive(here, weight_GR, values_MPD):
            (here, values_PD), groups = on_devices.unstacked((here, values_MPD)), len(weight_GR)
            leaving_PD = reordered(values_PD, here.as_arrived, here.by_expert)
            back_ND = exchange(leaving_PD, here.routes.back(), weight_GR.size)
            y_TD = permute.collect(back_ND, weight_GR.reshape(-1), here.layout, groups * self.num_tokens)
            return y_TD.reshape(groups, self.num_tokens, -1)

        return on_devices.run(receive, self.here, self.weight, rows.values)


@struct.dataclass
class Journey:
    """What a device does with rows.

    Attributes:
      layout: of its own edges, by expert.
      routes: the same on all devices along `expert`.
      by_expert: int32 [P], where each row, by expert, has arrived; `as_arrived` is the inverse.
      sizes: int32 [e], how many of them each of its experts has.
    """

    layout: Layout
    routes: Routes
    by_expert: jax.Array
    as_arrived: jax.Array
    sizes: jax.Array


def _journey(buffer_factor: float, routing: Routing) -> tuple[jax.Array, Journey]:
    """Returns `keep` and the rest of the plan of one device; all devices along `expert` call it together."""
    devices, num_experts = on_devices.expert_parts(), routing.num_experts
    groups, edges = routing.token.shape
    first_G1 = jnp.arange(groups, dtype=jnp.int32)[:, None] * routing.num_tokens
    token_N, expert_N = (routing.token + first_G1).reshape(-1), routing.expert.reshape(-1)
    keep_N = routing.keep.reshape(-1)
    places = math.ceil(min(buffer_factor, devices) * len(token_N))
    if places < devices * len(token_N):
        target_N = expert_N // (num_experts // devices)
        keep_N = _fitting(token_N, target_N, keep_N, devices, places)
    layout, count_E = sorted_by_expert(token_N, expert_N, keep_N, num_experts, routing.choices)
    count_nE, here = _of_all(count_E)
    count_nne = count_nE.reshape(devices, devices, -1)  # of source and target, by expert of the target
    sizes_nn = count_nne.sum(2)
    routes = Routes(starts=permute.before(sizes_nn, 1), sizes=sizes_nn, lands=permute.before(sizes_nn, 0))
    arriving_ne = count_nne[:, here]
    by_expert_P = jnp.argsort(_experts_of_arriving(arriving_ne, places), stable=True).astype(jnp.int32)
    place_P = jnp.arange(places, dtype=jnp.int32)
    return keep_N.reshape(groups, edges), Journey(
        layout,
        routes,
        by_expert=by_expert_P,
        as_arrived=jnp.zeros_like(place_P).at[by_expert_P].set(place_P, unique_indices=True),
        sizes=arriving_ne.sum(0),
    )


def _fitting(
    token_N: jax.Array, target_N: jax.Array, keep_N: jax.Array, devices: int, places: int
) -> jax.Array:
    """Returns bool [N], the edges of those in `keep_N` that their target has room for."""
    layout, wanted_n = sorted_by_expert(token_N, target_N, keep_N, devices, 0)
    wanted_nn, here = _of_all(wanted_n)
    room_n = jnp.maximum(places - permute.before(wanted_nn, 0)[here], 0)
    rank_N = layout.row - permute.before(wanted_n, 0)[target_N]  # among a device's edges for that target
    return keep_N & (rank_N < room_n[target_N])


def _of_all(count: jax.Array) -> tuple[jax.Array, jax.Array | int]:
    """The counts of all devices along `expert`, and which of them this one is."""
    if on_devices.expert_parts() == 1:
        return count[None], 0
    return jax.lax.all_gather(count, on_devices.EXPERT), jax.lax.axis_index(on_devices.EXPERT)


def _experts_of_arriving(count_ne: jax.Array, places: int) -> jax.Array:
    """Returns int32 [P], which of the device's experts each row is for; e where there is no row.

    Rows lie by source, and of one source by expert.
    """
    sources, experts = count_ne.shape
    of_block = jnp.tile(jnp.arange(experts, dtype=jnp.int32), sources)
    of_row_P = jnp.repeat(of_block, count_ne.reshape(-1), total_repeat_length=places)
    return jnp.where(jnp.arange(places) < count_ne.sum(), of_row_P, experts)
