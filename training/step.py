"""One optimizer step as a pure function, and the window over which its metrics are averaged on the device.

Letters: B rows of a batch, M microbatches.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from training import frozen
from training.activations import constrained
from training.mesh import Rule, batch_sharding
from training.task import (
    ACCUMULATIONS,
    RUNNING,
    TWO_PASS,
    Batch,
    GradientStep,
    Metrics,
    Others,
    Task,
    TrainState,
)

Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]

# A step whose numbers are not all finite is a bad one. The update too: an infinite learning rate makes
# an infinite update of a finite gradient.
WATCHED = ("loss", "grad_norm", "update_norm")


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    average_decay: float = 0.0,
    mesh: Mesh | None = None,
    activations: Sequence[Rule] = (),
) -> Step:
    """Returns the step `(state, batch, key) -> (state, metrics)`; metrics are scalars.

    The step's random key is a function of `key` and the step alone.

    Args:
      task: model and loss.
      optimizer: an optax transformation.
      microbatches: M; the batch is cut into M runs of B / M rows, one after the other, and their losses,
        metrics and gradients are averaged. What a loss compares within a batch, such as in-batch
        negatives, it compares within a microbatch only, unless the Task asks for more, see
        training.task.Task.accumulation.
      average_decay: of the moving average of the parameters, average <- decay average +
        (1 - decay) params, from the initial ones (Polyak and Juditsky, 1992, "Acceleration of Stochastic
        Approximation by Averaging"); 0 for none.
      mesh: the devices that share the rows of every microbatch; None leaves that to the compiler.
      activations: how named activations lie on the mesh, see training.activations.

    Raises:
      SpecError (when traced): a rule matches no activation, or does not fit it.
    """
    gradient_step = _gradient_step(task, optimizer, microbatches, mesh)
    update = getattr(task, "update", None)

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(key, state.step)
        if update is None:
            new, metrics = gradient_step(state, batch, rng)
        else:
            new, metrics = update(state, batch, rng, gradient_step)
        average = state.average
        if average is not None:
            average = optax.incremental_update(new.params, average, 1.0 - average_decay)
        return new.replace(step=state.step + 1, average=average), metrics

    return step if mesh is None else constrained(step, mesh, activations)


def _gradient_step(
    task: Task, optimizer: optax.GradientTransformation, microbatches: int, mesh: Mesh | None
) -> GradientStep:
    def differentiate(params, task_state, batch, rng, others=None):
        told = {} if others is None else {"others": others}

        def loss_of(params):
            params = frozen.stopped(params, frozen.of(task))
            return task.loss(params, task_state, batch, rng, train=True, **told)

        (loss, (task_state, metrics)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        metrics = dict(metrics)
        sums = metrics.pop("sums", {})
        return task_state, grads, {**_scalars(metrics), "loss": loss}, sums

    def accumulate(params, task_state, batch, rng):
        parts = split(batch, microbatches)
        if mesh is not None:  # every device takes part in every microbatch
            parts = jax.lax.with_sharding_constraint(parts, batch_sharding(mesh, leading=1))
        first = {name: array[0] for name, array in parts.items()}
        shapes = jax.eval_shape(differentiate, params, task_state, first, rng)
        totals = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[1:])
        numbered = (jnp.arange(microbatches), parts)
        told = getattr(task, "accumulation", None)
        surveyed = None
        if told not in (None, *ACCUMULATIONS):
            raise ValueError(
                f"accumulation is {told!r}; allowed: None, {', '.join(map(repr, ACCUMULATIONS))}"
            )
        if told == TWO_PASS:

            def look(part):
                number, batch = part
                return task.survey(params, task_state, batch, jax.random.fold_in(rng, number))

            surveyed = jax.lax.map(look, numbered)

        def one(carry, part):
            task_state, totals = carry
            number, batch = part
            others = Others(number, totals[2], surveyed) if told in (RUNNING, TWO_PASS) else None
            key = jax.random.fold_in(rng, number)
            task_state, *new = differentiate(params, task_state, batch, key, others)
            return (task_state, jax.tree.map(jnp.add, totals, tuple(new))), None

        (task_state, (grads, metrics, sums)), _ = jax.lax.scan(one, (task_state, totals), numbered)
        mean = lambda tree: jax.tree.map(lambda x: x / microbatches, tree)
        return task_state, mean(grads), mean(metrics), sums

    def step(state: TrainState, batch: Batch, rng: jax.Array) -> tuple[TrainState, Metrics]:
        take = differentiate if microbatches == 1 else accumulate
        task_state, grads, metrics, sums = take(state.params, state.state, batch, rng)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        if hasattr(task, "update_state"):
            task_state = task.update_state(task_state, sums)
        metrics["grad_norm"] = optax.global_norm(grads)
        metrics["update_norm"] = optax.global_norm(updates)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, state=task_state, opt_state=opt_state), metrics

    return step


def _scalars(metrics: Metrics) -> Metrics:
    """Returns metrics as float32 [], so that they can be averaged; ValueError where one is no scalar."""
    for name, value in metrics.items():
        if jnp.shape(value) != ():
            raise ValueError(f"metric {name!r} has shape {jnp.shape(value)}; allowed: a scalar")
        if name in WATCHED:
            raise ValueError(f"metric {name!r} is the loop's own; call it otherwise")
    return {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}


def split(batch: Batch, microbatches: int) -> dict[str, jax.Array]:
    """Returns the batch as [M, B / M, ...], in order.

    Raises:
      ValueError: M does not divide B.
    """
    for name, array in batch.items():
        if array.shape[0] % microbatches:
            raise ValueError(
                f"microbatches is {microbatches}, which does not divide the {array.shape[0]} rows of {name}"
            )
    return {name: x.reshape(microbatches, -1, *x.shape[1:]) for name, x in batch.items()}


@struct.dataclass
class Window:
    """Sums over the steps since the last row of metrics; on the device, and part of every checkpoint.

    Attributes:
      first_bad: int32 [], the first step whose loss, gradient or update was not finite; -1 for none.
      steps: float32 [], how many steps are summed.
      tokens: float32 [], positions under the masks of their batches; `slots` all positions.
      sums: float32 [] by metric.
    """

    first_bad: jax.Array
    steps: jax.Array
    tokens: jax.Array
    slots: jax.Array
    sums: Mapping[str, jax.Array]


def empty_window(names: Mapping[str, Any]) -> Window:
    """Returns the window of no steps for metrics of the given names."""
    zero = lambda: jnp.zeros((), jnp.float32)
    return Window(jnp.full((), -1, jnp.int32), zero(), zero(), zero(), {name: zero() for name in names})


def watched(step: Step) -> Callable[..., tuple[TrainState, Window, jax.Array]]:
    """Returns `(state, window, batch, key, signals) -> (state, window, signal)`: the step, metrics added up.

    Noticing a bad step and summing costs no synchronization. `signals` int32 [devices] are the signals that
    processes have received, 0 for none; `signal` int32 [] is the largest, by which all processes agree on
    when to stop, and a small array of which a loop can wait.
    """

    def run(state: TrainState, window: Window, batch: Batch, key: jax.Array, signals: jax.Array):
        state, metrics = step(state, batch, key)
        missing = [name for name in WATCHED if name not in metrics]
        if missing:
            raise ValueError(
                f"metrics lack {', '.join(missing)}; `update` must return what gradient_step does"
            )
        finite = functools.reduce(jnp.logical_and, (jnp.isfinite(metrics[name]) for name in WATCHED))
        first_bad = jnp.where((window.first_bad < 0) & ~finite, state.step, window.first_bad)
        masks = [array for name, array in batch.items() if name.endswith("mask")]
        window = Window(
            first_bad,
            window.steps + 1,
            window.tokens + sum(mask.sum().astype(jnp.float32) for mask in masks),
            window.slots + float(sum(mask.size for mask in masks)),
            {name: window.sums[name] + metrics[name].astype(jnp.float32) for name in window.sums},
        )
        return state, window, signals.max()

    return run
