"""The one training loop: every Task runs on it, with the data, evaluators and run directory it is handed."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from training import mesh as meshes
from training.checkpoints import Checkpoints
from training.interrupts import Interrupted, catch_signals
from training.log import Log
from training.task import Batch, Task, TrainState, create

Evaluator = Callable[[TrainState], Iterable[tuple[str, float]]]


class NonFiniteLoss(RuntimeError):
    """The loss or the gradient became NaN or infinite; the message names the step and its batch."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How often things happen, in optimizer steps.

    Attributes:
      total_steps: the step to stop at.
      log_every: between rows of metrics.
      eval_every: between evaluations; there is always one before the first step and one at the end.
      save_every: between checkpoints; there is always one at the end.
      best_measure: the evaluators' value whose highest state is kept as `best`; "" for none.
      keep_checkpoints: how many of the latest to keep.
    """

    total_steps: int
    log_every: int = 50
    eval_every: int = 500
    save_every: int = 500
    best_measure: str = ""
    keep_checkpoints: int = 2

    def __post_init__(self):
        for field in ("total_steps", "log_every", "eval_every", "save_every", "keep_checkpoints"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")


def train(
    task: Task,
    optimizer: optax.GradientTransformation,
    batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]],
    schedule: Schedule,
    run_dir: str | Path,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    evaluators: Sequence[Evaluator] = (),
    describe_batch: Callable[[int], str] = lambda step: f"batch {step}",
) -> TrainState:
    """Trains from the run directory's latest checkpoint, or from the start, to the last step.

    Args:
      task: model and loss.
      optimizer: an optax transformation.
      batches: from a first step, an iterator over this process's batches from there on.
      schedule: how long, and how often to log, evaluate and save.
      run_dir: gets metrics.jsonl, tensorboard/ and checkpoints/.
      seed: of initialization and of every step's random key.
      mesh: devices; all of them on one `data` axis by default.
      evaluators: called with the state every `eval_every` steps; they yield (name, value).
      describe_batch: names the examples of a step's batch, for the error message.

    Returns:
      the state after the last step.

    Raises:
      NonFiniteLoss: the loss or the gradient is NaN or infinite. What was saved stays.
      Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    mesh = meshes.data_mesh() if mesh is None else mesh
    key = jax.random.key(seed)
    checkpoints = Checkpoints(Path(run_dir) / "checkpoints", keep=schedule.keep_checkpoints)
    try:
        first = checkpoints.latest_step() or 0
        done = first >= schedule.total_steps
        stream = batches(0 if done else first)
        batch = meshes.shard_batch(next(stream), mesh)
        state = _initial_state(task, optimizer, key, batch, mesh)
        if first:
            state = checkpoints.restore(state)
        if done:
            return state
        with Log(run_dir, state, schedule.total_steps, mesh) as log, catch_signals() as stop:
            if not first:
                _evaluate(evaluators, state, log)
            step_function = jax.jit(make_step(task, optimizer), donate_argnums=(0, 1))
            bad_step = meshes.replicate(jnp.full((), -1, jnp.int32), mesh)
            for step in range(first + 1, schedule.total_steps + 1):
                state, bad_step, metrics = step_function(state, bad_step, batch, key)
                log.add(metrics, batch)
                last = step == schedule.total_steps
                if not last:  # made while the device is busy
                    batch = meshes.shard_batch(next(stream), mesh)
                evaluate = last or step % schedule.eval_every == 0
                save = last or step % schedule.save_every == 0
                if not (evaluate or save or step % schedule.log_every == 0 or stop.signum is not None):
                    continue
                _check_finite(bad_step, describe_batch, checkpoints)
                log.write(step)
                if evaluate:
                    _keep_best(checkpoints, state, _evaluate(evaluators, state, log), schedule.best_measure)
                stopped_by = stop.signum  # read once: a signal may come at any moment
                if save or stopped_by is not None:
                    checkpoints.save(state)
                log.restart_clock()
                if stopped_by is not None:
                    raise Interrupted(stopped_by, step)
    finally:
        checkpoints.close()
    return state


def _initial_state(
    task: Task, optimizer: optax.GradientTransformation, key: jax.Array, batch: Batch, mesh: Mesh
) -> TrainState:
    # A number that no step has, so that initialization shares its key with none.
    key = jax.random.fold_in(key, 2**31 - 1)
    return meshes.replicate(jax.jit(lambda key: create(task, optimizer, key, batch))(key), mesh)


def _check_finite(
    bad_step: jax.Array, describe_batch: Callable[[int], str], checkpoints: Checkpoints
) -> None:
    step = int(bad_step)
    if step >= 0:
        saved = checkpoints.latest_step()
        raise NonFiniteLoss(
            f"loss or gradient is not finite at step {step} ({describe_batch(step - 1)}); "
            f"{'nothing was saved yet' if saved is None else f'the last good checkpoint is step {saved}'}"
        )


def make_step(task: Task, optimizer: optax.GradientTransformation) -> Callable:
    """Returns the step `(state, bad_step, batch, key) -> (state, bad_step, metrics)`.

    `bad_step` int32 is the first step whose loss or gradient was not finite, -1 for none. It stays
    on the device, so that noticing costs no synchronization. The step's random key is a function of
    `key` and the step alone.
    """

    def step(state: TrainState, bad_step: jax.Array, batch: Batch, key: jax.Array):
        rng = jax.random.fold_in(key, state.step)

        def loss_of(params):
            return task.loss(params, state.state, batch, rng, train=True)

        (loss, (task_state, metrics)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        grad_norm = optax.global_norm(grads)
        # The update too: an infinite learning rate makes one of a finite gradient.
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.global_norm(updates))
        number = state.step + 1
        bad_step = jnp.where((bad_step < 0) & ~finite, number, bad_step)
        new_state = TrainState(number, optax.apply_updates(state.params, updates), task_state, opt_state)
        return new_state, bad_step, {"loss": loss, "grad_norm": grad_norm, **metrics}

    return step


def _evaluate(evaluators: Sequence[Evaluator], state: TrainState, log: Log) -> dict[str, float]:
    measured = {name: value for evaluator in evaluators for name, value in evaluator(state)}
    if measured:
        log.write_measures(int(state.step), measured)
    return measured


def _keep_best(checkpoints: Checkpoints, state: TrainState, measured: dict[str, float], measure: str) -> None:
    if not measure:
        return
    if measure not in measured:
        raise ValueError(
            f"best_measure is {measure!r}; the evaluators gave {', '.join(measured) or 'nothing'}"
        )
    best = checkpoints.best_value()
    if not math.isfinite(measured[measure]):
        return
    if best is None or measured[measure] > best:
        checkpoints.save_best(state, measured[measure])
