"""How training starts: the step and the state that a Task, an optimizer and a layout come to on a mesh.

The loop computes these, and `experiments.plan` compiles them from shapes alone.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from training import frozen, rules
from training.build import SpecError
from training.mesh import Layout, to_host
from training.step import Step, Window, empty_window, make_step
from training.task import Batch, Task, TrainState, begin, create

Initialize = Callable[[Any, Any], tuple[Any, Any]]  # (params, state) -> (params, state)


@dataclasses.dataclass(frozen=True)
class Start:
    """What is the same for all of a run, before any array is there.

    Attributes:
      task: model and loss.
      optimizer: an optax transformation; what the Task has frozen is left out of it, see training.frozen.
      mesh: the devices.
      layout: where parameters and activations lie on them.
      microbatches, average_decay: see training.step.make_step.
    """

    task: Task
    optimizer: optax.GradientTransformation
    mesh: Mesh
    layout: Layout
    microbatches: int = 1
    average_decay: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "optimizer", frozen.left_out(self.optimizer, frozen.of(self.task)))

    def step(self) -> Step:
        """Returns the step, whose named activations lie as the layout says."""
        return make_step(
            self.task,
            self.optimizer,
            microbatches=self.microbatches,
            average_decay=self.average_decay,
            mesh=self.mesh,
            activations=self.layout.activations,
        )

    def shapes(self, key: jax.Array, batch: Batch) -> TrainState:
        """Returns the shapes of the first state, each with its sharding; key and batch may be shapes too.

        Raises:
          SpecError: a rule for parameters matches nothing or does not fit, or the model refuses the config.
        """
        with _of_config():
            shapes = jax.eval_shape(self._first, key, batch)
        of_state = getattr(self.task, "state_rules", ())
        return placed(shapes, rules.shardings(shapes, self.mesh, self.layout.parameters, of_state=of_state))

    def state(
        self, key: jax.Array, batch: Batch, like: TrainState, initialize: Initialize | None
    ) -> TrainState:
        """Returns the state before the first step, placed as `like`, which `shapes` gives.

        Args:
          initialize: from random parameters and the Task's first state, whole on the host, to those to begin
            with; None to keep them.
        """
        shardings = jax.tree.map(lambda x: x.sharding, like)
        state = jax.jit(self._first, out_shardings=shardings)(key, batch)
        if initialize is None:
            return state
        params, task_state = initialize(to_host(state.params), to_host(state.state))
        first = lambda params, state: begin(self.optimizer, params, state, average=self._average)
        return jax.jit(first, out_shardings=shardings)(params, task_state)

    def window(self, step: Step, state: TrainState, batch: Batch, key: jax.Array) -> Window:
        """Returns the window of no steps, for the metrics of this step; its arguments may be shapes."""
        with jax.set_mesh(self.mesh), _of_config():
            metrics = jax.eval_shape(step, state, batch, key)[1]
        return empty_window(metrics)  # on no mesh, whose devices need not be there

    @property
    def _average(self) -> bool:
        return self.average_decay > 0

    def _first(self, key: jax.Array, batch: Batch) -> TrainState:
        # A number that no step has, so that initialization shares its key with none.
        key = jax.random.fold_in(key, 2**31 - 1)
        return create(self.task, self.optimizer, key, batch, average=self._average)


@contextlib.contextmanager
def _of_config() -> Iterator[None]:
    """What a model refuses as it is first traced, such as a size that does not divide, is its config's."""
    try:
        yield
    except SpecError:
        raise
    except ValueError as error:
        raise SpecError(f"config: {error}") from error


def placed(shapes: Any, shardings: Any) -> Any:
    """Returns a tree of shapes with a tree of shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
    )
