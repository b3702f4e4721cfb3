"""Capacity: how many tokens of a group an expert serves, and who goes first.

    C = ceil(factor K T / E)

T, the number of tokens that a group has room for, is a config value, not the padded length: a longer padding
makes no room, and a token's place never depends on how its sequence was stored.

Dimensions: G groups, S tokens of a group, R edges, E experts, K choices of a token, C capacity.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.leakage import NONE, Dependence
from moe.permute import before
from moe.routing import Routing

Priority = Callable[[Routing], tuple[jax.Array, ...]]


def by_position(routing: Routing) -> tuple[jax.Array, ...]:
    """Earlier tokens first, each with all its choices. What a token gets depends on no later one."""
    return (routing.token,)


def by_choice(routing: Routing) -> tuple[jax.Array, ...]:
    """All first choices, then all second ones, each in the order of tokens: the order of Lepikhin et al.
    (2021), "GShard", and Fedus et al. (2022), "Switch Transformers". A later token's first choice goes
    before an earlier one's second."""
    return (_number(routing), routing.token)


def by_score(routing: Routing) -> tuple[jax.Array, ...]:
    """First choices first, and of these the largest weight: the batch prioritized routing of Riquelme et al.
    (2021), "Scaling Vision with Sparse Mixture of Experts". Ties go to the earlier token."""
    return (_number(routing), -routing.weight, routing.token)


def _number(routing: Routing) -> jax.Array:
    """int32 [G, R], which of its token's choices an edge is; 0 where experts choose."""
    if not routing.choices:
        return jnp.zeros_like(routing.token)
    numbers = jnp.arange(routing.choices, dtype=jnp.int32)
    return jnp.broadcast_to(jnp.tile(numbers, routing.num_tokens)[None], routing.token.shape)


@dataclasses.dataclass(frozen=True)
class Capacity:
    """How many tokens of a group each expert serves.

    Attributes:
      factor: 1 is just enough if all experts get the same.
      tokens: T, tokens of a group that there is room for.
      evaluation_factor: the factor where nothing is trained; None for the same, infinity to serve all.
      priority: who goes first, such as `by_position`.

    Raises:
      ValueError: a factor or `tokens` is not positive.
    """

    factor: float
    tokens: int
    evaluation_factor: float | None = None
    priority: Priority = by_position

    def __post_init__(self):
        for field in ("factor", "tokens", "evaluation_factor"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"{field} is {value}; allowed: a positive number")

    def slots(self, routing: Routing, *, train: bool) -> int:
        """Returns C, at most the S edges that one expert can have in a group.

        Where experts choose, they have chosen as many as they serve: C = R / E.
        """
        if not routing.choices:
            return routing.token.shape[1] // routing.num_experts
        wanted = self._factor(train) * routing.choices * self.tokens / routing.num_experts
        return whole_slots(wanted, routing.num_tokens)

    def dependence(self, train: bool) -> Dependence:
        """See `moe.leakage`: no token is the worse for those that it goes before. Only of `by_position` is it
        known that these are the later ones."""
        if self._factor(train) == math.inf:
            return NONE
        function = getattr(self.priority, "func", self.priority)  # a config's is a partial
        return Dependence(later=function is not by_position, earlier=True)

    def _factor(self, train: bool) -> float:
        return self.factor if train or self.evaluation_factor is None else self.evaluation_factor


def whole_slots(wanted: float, most: int) -> int:
    """Returns the places that are wanted, rounded up, and no more than `most`; 22.000000000000004 are 22."""
    return math.ceil(round(min(wanted, most), 6))


def order(routing: Routing, priority: Priority = by_position) -> jax.Array:
    """Returns int32 [G, R], the edges sorted by expert and then by priority; those not kept come last."""
    expert = jnp.where(routing.keep, routing.expert, routing.num_experts)
    edges = jnp.broadcast_to(jnp.arange(expert.shape[1], dtype=jnp.int32)[None], expert.shape)
    keys = (expert, *priority(routing))
    return jax.lax.sort((*keys, edges), num_keys=len(keys), is_stable=True)[-1]


def counts(routing: Routing) -> jax.Array:
    """Returns int32 [G, E], the kept edges of each expert."""
    experts = jnp.arange(routing.num_experts, dtype=jnp.int32)[None, None]
    ours = (routing.expert[:, :, None] == experts) & routing.keep[:, :, None]
    return ours.sum(1, dtype=jnp.int32)


def places(routing: Routing, order_GR: jax.Array) -> jax.Array:
    """Returns int32 [G, R], the place of each edge among those of its expert; below C it is served.

    Edges that are not kept have a place of at least 0 that means nothing.
    """
    start_GE = before(counts(routing), 1)
    groups, edges = order_GR.shape
    numbers = jnp.broadcast_to(jnp.arange(edges, dtype=jnp.int32)[None], order_GR.shape)
    group_G1 = jnp.arange(groups, dtype=jnp.int32)[:, None]
    # The inverse of the order; XLA on a CPU sorts 70 times as long.
    at = jnp.zeros_like(order_GR).at[group_G1, order_GR].set(numbers, unique_indices=True)
    return jnp.maximum(at - jnp.take_along_axis(start_GE, routing.expert, axis=1), 0)
