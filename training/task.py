"""What the loop asks of a Task, and the state it carries from step to step."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import optax
from flax import struct

# What a loss in a microbatch takes in, see Task.accumulation.
ALONE, RUNNING, TWO_PASS = ACCUMULATIONS = ("alone", "running", "two_pass")

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """Everything that a checkpoint holds.

    Attributes:
      step: int32 [], optimizer steps done.
      params: what the gradient changes.
      state: what else the Task carries.
      opt_state: the optimizer's.
      average: the moving average of `params`, or None where none is kept.
    """

    step: jax.Array
    params: Any
    state: Any
    opt_state: optax.OptState
    average: Any = None

    @property
    def eval_params(self) -> Any:
        """What is evaluated and kept as best: the average where there is one."""
        return self.params if self.average is None else self.average


@struct.dataclass
class Others:
    """What the loss of a microbatch is told of the other ones of its step.

    Attributes:
      number: int32 [], which of the microbatches it is.
      before: what those before it put under "sums" of their metrics, added up; zeros for the first.
      all: what `survey` gave for each, stacked [M, ...], its own included; None for a Task that surveys
        nothing.
    """

    number: jax.Array
    before: Any
    all: Any = None


GradientStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


class Task(Protocol):
    """A model with its loss. A Task holds modules and settings; arrays are passed in and out.

    `state` is what changes without a gradient; {} for a Task that has none. More methods are optional:

    * `update_state(state, sums) -> state`, called once per optimizer step, however many microbatches it
      has. The loss then puts additive sums under "sums" of its metrics; those of the microbatches are added.
    * `accumulation`, a property, for a loss that is of the whole batch where it is computed in microbatches:
      with RUNNING or TWO_PASS, `loss` is called with `others=Others(...)` if there are several of them;
      ALONE, or None, leaves each microbatch alone. With TWO_PASS, `survey(params, state, batch,
      rng) -> pytree` is called before, once for each microbatch and with the key that its loss is given.
    * `update(train_state, batch, rng, gradient_step) -> (train_state, metrics)`, in place of the plain
      step, which it is handed as `gradient_step(train_state, batch, rng)`: to weigh groups or to change the
      batch before it, or to take several. The loop counts one step, and needs the metrics of at least one
      `gradient_step`.
    * `frozen`, regular expressions of the paths of parameters that are not trained, see training.frozen.
    * `state_rules`, rules of training.mesh.Layout for the paths of the state, where it is too large to be
      whole on every device.
    * `kept(state) -> state`, what of the state the best checkpoint is to hold, which is there to be used and
      not to train on; all of it otherwise.
    * `batches(make_batch, *, source, examples, symbols_NT, seed) -> make_batch`, for one that spells docids
      and wants more of a batch than `generative_retrieval.indexing.batches` puts there, which it is handed as
      `make_batch`; experiments.generative calls it once, before the training.
    """

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        """Returns (params, state) for batches shaped like `batch`."""
        ...

    def loss(
        self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Returns (scalar loss, (new state, scalar metrics))."""
        ...


def kept(task: Task, state: Any) -> Any:
    """Returns what of a Task's state the best checkpoint holds."""
    return task.kept(state) if hasattr(task, "kept") else state


def create(
    task: Task,
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
    batch: Batch,
    *,
    average: bool = False,
) -> TrainState:
    """Returns the state before the first step; with `average`, one whose moving average starts there."""
    params, state = task.init(rng, batch)
    return begin(optimizer, params, state, average=average)


def begin(
    optimizer: optax.GradientTransformation, params: Any, state: Any, *, average: bool = False
) -> TrainState:
    """Returns the state before the first step from given parameters."""
    params, state = _strong((params, state))
    step = jax.numpy.zeros((), jax.numpy.int32)
    return TrainState(step, params, state, _strong(optimizer.init(params)), params if average else None)


def _strong(tree: Any) -> Any:
    """Makes the weak types of Python numbers what a restore makes of them; products might round otherwise."""

    def strong(leaf: Any) -> jax.Array:
        leaf = jax.numpy.asarray(leaf)
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended):  # random keys
            return leaf
        return jax.lax.convert_element_type(leaf, leaf.dtype)

    return jax.tree.map(strong, tree)
