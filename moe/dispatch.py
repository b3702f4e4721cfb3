"""What a dispatcher is: it brings tokens to their experts, and back.

    plan = dispatcher.plan(routing, train=train)
    rows = plan.dispatch(x_GSD)
    y_GSD = plan.combine(experts(rows))

An expert touches its weights only through `rows.matmul(w [E, D, F])` and `rows.add(b [E, F])`, so that any
expert runs on any layout: `one_hot` (the oracle), `sorted`, `dropless`, and the expert-parallel ones.

Dimensions: G groups, S tokens of a group, R edges, E experts, C capacity, D, F widths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from moe.leakage import Dependence
from moe.routing import Routing


class Rows(Protocol):
    """Rows of tokens, laid out by expert. Places that hold no token may hold anything finite.

    Attributes:
      values: float [..., D].
      num_experts: E.
    """

    values: jax.Array
    num_experts: int

    def matmul(self, w_EDF: jax.Array) -> Rows:
        """Each row times its expert's weights, in the dtype of the rows."""
        ...

    def add(self, b_EF: jax.Array) -> Rows:
        """Each row plus its expert's vector."""
        ...

    def map(self, function: Callable[..., jax.Array], *others: Rows) -> Rows:
        """An elementwise function of the values, and of those of rows with the same layout."""
        ...


class Plan(Protocol):
    """Where the edges of one routing go.

    Attributes:
      keep: bool [G, R], the edges that are served.
    """

    keep: jax.Array

    def dispatch(self, x_GSD: jax.Array) -> Rows:
        """Copies the token of each served edge to its expert."""
        ...

    def combine(self, rows: Rows) -> jax.Array:
        """Returns [G, S, D]: of each token, the rows of its served edges times their weights, added up in
        float32; zero for a token without any."""
        ...


class Dispatcher(Protocol):
    """See above.

    Attributes:
      exchanges: whether tokens travel to the devices of their experts; see `moe.cost`.
    """

    exchanges: ClassVar[bool]

    def plan(self, routing: Routing, *, train: bool) -> Plan:
        """Decides who is served."""
        ...

    def dependence(self, train: bool) -> Dependence:
        """What else the output of a token depends on, among the tokens of its group; see `moe.leakage`."""
        ...


@struct.dataclass
class Buffers:
    """Rows with C places for each expert of each group.

    Attributes:
      values: float [G, E, C, D].
    """

    values: jax.Array

    @property
    def num_experts(self) -> int:
        return self.values.shape[1]

    def matmul(self, w_EDF: jax.Array) -> Buffers:
        w_EDF = w_EDF.astype(self.values.dtype)
        return Buffers(jnp.einsum("gecd,edf->gecf", self.values, w_EDF))

    def add(self, b_EF: jax.Array) -> Buffers:
        return Buffers(self.values + b_EF.astype(self.values.dtype)[None, :, None])

    def map(self, function: Callable[..., jax.Array], *others: Buffers) -> Buffers:
        return Buffers(function(self.values, *(other.values for other in others)))
