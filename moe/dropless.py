"""Dispatch that drops nothing: the tokens of a device sorted by expert, each expert with as many as chose it.

There is no capacity, and nothing is padded: R edges make R rows, and `moe.grouped_matmul` multiplies each
expert's rows with its weights, as in Gale et al. (2023), "MegaBlocks: Efficient Sparse Training with
Mixture-of-Experts". Groups do not matter. Over a mesh each device sorts its own edges, and every device has
all weights (see `moe.expert_parallel_dropless` for experts that are split).

Dimensions: G groups, S tokens of a group, E experts, D, F widths; M devices, and of each T tokens, R edges.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from moe import on_devices, permute
from moe.grouped_matmul import grouped_matmul
from moe.leakage import NONE, Dependence
from moe.permute import Layout
from moe.routing import Routing
from moe.sorted_rows import Matmul, SortedRows


@dataclasses.dataclass(frozen=True)
class Dropless:
    """Serves every edge that the router keeps.

    Attributes:
      matmul: `(x [R, D], w [E, D, F], sizes [E]) -> [R, F]` of rows sorted by expert; see
        `moe.grouped_matmul`.
    """

    matmul: Matmul = grouped_matmul
    exchanges: ClassVar[bool] = False

    def plan(self, routing: Routing, *, train: bool) -> "DroplessPlan":
        """See `moe.dispatch.Dispatcher`.

        Raises:
          ValueError: the mesh does not divide the tokens (the groups, where experts have chosen), or splits
            weights over `tensor`.
        """
        del train
        on_devices.check_no_tensor("Dropless")
        devices = on_devices.parts()
        token_MR = _tokens_of_devices(routing, devices)
        expert_MR, keep_MR = (x.reshape(token_MR.shape) for x in (routing.expert, routing.keep))

        def sort(*edges_MR):
            edges_R = on_devices.unstacked(edges_MR)
            return on_devices.stacked(sorted_by_expert(*edges_R, routing.num_experts, routing.choices))

        layout, sizes_ME = on_devices.run(sort, token_MR, expert_MR, keep_MR)
        weight_MR = routing.weight.reshape(token_MR.shape)
        return DroplessPlan(routing.keep, weight_MR, layout, sizes_ME, routing.num_tokens, self.matmul)

    def dependence(self, train: bool) -> Dependence:
        """See `moe.leakage`: all are served."""
        del train
        return NONE


@struct.dataclass
class DroplessPlan:
    """See `moe.dispatch.Plan`.

    Attributes:
      keep: bool [G, R of a group].
      weight: float32 [M, R].
      layout: of each device, [M, R].
      sizes: int32 [M, E], how many rows each expert has.
      num_tokens: S.
      product: see `Dropless.matmul`.
    """

    keep: jax.Array
    weight: jax.Array
    layout: Layout
    sizes: jax.Array
    num_tokens: int = struct.field(pytree_node=False)
    product: Matmul = struct.field(pytree_node=False)

    def dispatch(self, x_GSD: jax.Array) -> SortedRows:
        x_MTD = x_GSD.reshape(len(self.sizes), -1, x_GSD.shape[-1])

        def spread(*parts):
            return on_devices.stacked(permute.spread(*on_devices.unstacked(parts)))

        values_MRD = on_devices.run(spread, x_MTD, self.layout)
        return SortedRows(values_MRD, self.sizes, self.sizes.shape[1], self.product)

    def combine(self, rows: SortedRows) -> jax.Array:
        groups, tokens = len(self.keep), self.num_tokens
        of_device = groups * tokens // len(self.sizes)

        def collect(*parts):
            return on_devices.stacked(permute.collect(*on_devices.unstacked(parts), of_device))

        y_MTD = on_devices.run(collect, rows.values, self.weight, self.layout)
        return y_MTD.reshape(groups, tokens, rows.values.shape[-1])


def sorted_by_expert(
    token_R: jax.Array, expert_R: jax.Array, keep_R: jax.Array, num_experts: int, choices: int
) -> tuple[Layout, jax.Array]:
    """Sorts edges by expert, and those of one expert as they came; edges that are not kept come last.

    Args:
      token_R, expert_R: int32 [R].
      keep_R: bool [R].
      num_experts: E.
      choices: see `moe.permute.Layout`.

    Returns:
      the layout with R rows, and int32 [E], how many rows each expert has.
    """
    edge_R = jnp.arange(len(token_R), dtype=jnp.int32)
    expert_R = jnp.where(keep_R, expert_R, num_experts)
    order_R = _order(expert_R, num_experts)
    row_R = jnp.zeros_like(order_R).at[order_R].set(edge_R, unique_indices=True)
    size_E = jnp.zeros(num_experts, jnp.int32).at[expert_R].add(1, mode="drop")
    return Layout(token_R, order_R, edge_R < size_E.sum(), row_R, keep_R, choices), size_E


def _order(expert_R: jax.Array, num_experts: int) -> jax.Array:
    """int32 [R], the edges by expert, of which there are E and the one of those that are not kept."""
    edges = len(expert_R)
    if (num_experts + 1) * edges >= 2**31:
        return jnp.argsort(expert_R, stable=True).astype(jnp.int32)
    # Edge and expert in one number: XLA on a CPU sorts it 6 times as fast as a pair.
    return lax.sort(expert_R * edges + jnp.arange(edges, dtype=jnp.int32)) % edges


def _tokens_of_devices(routing: Routing, devices: int) -> jax.Array:
    """int32 [M, R], the token of each edge among those of its device."""
    groups, tokens = len(routing.token), routing.num_tokens
    if routing.choices:  # edges are in order of tokens, wherever a group ends
        on_devices.check_groups(groups * tokens, "tokens")
        token_R = jnp.arange(groups * tokens // devices, dtype=jnp.int32).repeat(routing.choices)
        return jnp.broadcast_to(token_R[None], (devices, len(token_R)))
    on_devices.check_groups(groups, "groups in which experts choose")
    first_G = jnp.arange(groups, dtype=jnp.int32) % (groups // devices) * tokens
    return (routing.token + first_G[:, None]).reshape(devices, -1)
