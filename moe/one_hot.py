"""Dispatch by products with one-hot masks: the form in which GShard was published, and our oracle.

Its cost grows as S E C D; it is here to be compared with.

Dimensions: G groups, S tokens of a group, R edges, K choices, E experts, C capacity, D width.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from moe import capacity as capacities
from moe.capacity import Capacity
from moe.dispatch import Buffers
from moe.leakage import NONE, Dependence
from moe.routing import Routing


@dataclasses.dataclass(frozen=True)
class OneHot:
    """Lepikhin et al. (2021), "GShard: Scaling Giant Models with Conditional Computation and Automatic
    Sharding".

    Attributes:
      capacity: how many tokens an expert serves; None serves all, with S places for each expert.
    """

    capacity: Capacity | None = None
    exchanges: ClassVar[bool] = False

    def plan(self, routing: Routing, *, train: bool) -> "OneHotPlan":
        """See `moe.dispatch.Dispatcher`."""
        if self.capacity is None:
            slots, priority = routing.num_tokens, capacities.by_position
        else:
            slots, priority = self.capacity.slots(routing, train=train), self.capacity.priority
        place_GR = capacities.places(routing, capacities.order(routing, priority))
        keep_GR = routing.keep & (place_GR < slots)
        return OneHotPlan(keep_GR, routing.replace(keep=keep_GR), place_GR, slots)

    def dependence(self, train: bool) -> Dependence:
        """See `moe.leakage`."""
        return NONE if self.capacity is None else self.capacity.dependence(train)


@struct.dataclass
class OneHotPlan:
    """See `moe.dispatch.Plan`."""

    keep: jax.Array
    routing: Routing
    place: jax.Array
    slots: int = struct.field(pytree_node=False)

    def dispatch(self, x_GSD: jax.Array) -> Buffers:
        mask_GSEC = self._mask(self.keep.astype(x_GSD.dtype))
        return Buffers(jnp.einsum("gsec,gsd->gecd", mask_GSEC, x_GSD))

    def combine(self, rows: Buffers) -> jax.Array:
        weights_GSEC = self._mask(jnp.where(self.keep, self.routing.weight, 0.0))
        y_GSD = jnp.einsum("gsec,gecd->gsd", weights_GSEC, rows.values.astype(jnp.float32))
        return y_GSD.astype(rows.values.dtype)

    def _mask(self, of_edge_GR: jax.Array) -> jax.Array:
        """Puts the number of each edge at its token, expert and place."""
        routing, dtype = self.routing, of_edge_GR.dtype
        expert = jax.nn.one_hot(routing.expert, routing.num_experts, dtype=dtype)
        place = jax.nn.one_hot(self.place, self.slots, dtype=dtype) * of_edge_GR[:, :, None]
        if routing.choices:
            by_token = lambda x: x.reshape(len(x), routing.num_tokens, routing.choices, -1)
            return jnp.einsum("gske,gskc->gsec", by_token(expert), by_token(place))
        token = jax.nn.one_hot(routing.token, routing.num_tokens, dtype=dtype)
        return jnp.einsum("grs,gre,grc->gsec", token, expert, place)
