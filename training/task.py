"""What the loop asks of a Task, and the state it carries from step to step."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import optax
from flax import struct

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class Task(Protocol):
    """A model with its loss. A Task holds modules and settings; arrays are passed in and out.

    `state` is what changes without a gradient; {} for a Task that has none.
    """

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        """Returns (params, state) for batches shaped like `batch`."""
        ...

    def loss(
        self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Returns (scalar loss, (new state, scalar metrics))."""
        ...


@struct.dataclass
class TrainState:
    """Everything that a checkpoint holds: `step` int32 counts optimizer steps done."""

    step: jax.Array
    params: Any
    state: Any
    opt_state: optax.OptState


def create(task: Task, optimizer: optax.GradientTransformation, rng: jax.Array, batch: Batch) -> TrainState:
    """Returns the state before the first step."""
    params, state = task.init(rng, batch)
    return TrainState(jax.numpy.zeros((), jax.numpy.int32), params, state, optimizer.init(params))
