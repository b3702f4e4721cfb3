"""The one training loop: every Task runs on it, with the data, evaluators and hooks it is handed."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from training import frozen
from training import mesh as meshes
from training.agreement import Agreement, same_everywhere
from training.checkpoints import CheckpointError, Checkpoints
from training.compiled import CompiledSteps
from training.interrupts import Interrupted, StopRequest, catch_signals
from training.lock import exclusive
from training.log import Log
from training.mesh import Layout
from training.profiling import Profile
from training.start import Initialize, Start
from training.step import Step, Window, empty_window, watched
from training.tables import Hook, Tables
from training.task import Batch, Task, TrainState, kept

Evaluator = Callable[[TrainState], Iterable[tuple[str, float]]]
Batches = Callable[[int, Mapping[str, np.ndarray]], Iterator[Mapping[str, np.ndarray]]]


class NonFiniteLoss(RuntimeError):
    """The loss, gradient or update became NaN or infinite; the message names the step and its batch."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a run goes; intervals are in optimizer steps.

    Attributes:
      total_steps: the step to stop at.
      log_every: between rows of metrics.
      eval_every: between evaluations; there is always one before the first step and one at the end.
      save_every: between checkpoints; there is always one at the end.
      best_measure: the evaluators' value whose highest state is kept as `best`; "" for none.
      keep_checkpoints: how many of the latest to keep; one more while the run goes on.
      microbatches: parts that a batch is cut into, to fit in memory; their gradients are averaged. In-batch
        negatives then come from the part, not from the whole batch. See training.step.make_step.
      average_decay: of the moving average of the parameters that is then evaluated in their place, such as
        0.999; 0 for none.
    """

    total_steps: int
    log_every: int = 50
    eval_every: int = 500
    save_every: int = 500
    best_measure: str = ""
    keep_checkpoints: int = 2
    microbatches: int = 1
    average_decay: float = 0.0

    def __post_init__(self):
        positive = "total_steps log_every eval_every save_every keep_checkpoints microbatches"
        for field in positive.split():
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay is {self.average_decay}; allowed: 0 to below 1")


def train(
    task: Task,
    optimizer: optax.GradientTransformation,
    batches: Batches,
    schedule: Schedule,
    run_dir: str | Path,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    layout: Layout = Layout(),  # noqa: B008 - it does not change
    evaluators: Sequence[Evaluator] = (),
    hooks: Sequence[Hook] = (),
    tables: Mapping[str, np.ndarray] | None = None,
    initialize: Initialize | None = None,
    describe_batch: Callable[[int], str] = lambda step: f"batch {step}",
    profile: Profile | None = None,
) -> TrainState:
    """Trains from the run directory's newest sound checkpoint, or from the start, to the last step.

    However often a run is stopped, by a signal or a kill, it comes to the same state and the same
    metrics.jsonl, but for what is named `time/`, where the device computes the same twice.

    Args:
      task: model and loss.
      optimizer: an optax transformation.
      batches: from a first step and the tables in use, an iterator over this process's batches.
      schedule: how long, and how often to log, evaluate and save.
      run_dir: gets metrics.jsonl, tensorboard/, checkpoints/ and tables/.
      seed: of initialization and of every step's random key.
      mesh: devices; those that `layout` makes a mesh of by default.
      layout: where parameters and activations lie on the mesh.
      evaluators: called with the state every `eval_every` steps; they yield (name, value).
      hooks: called every `every` steps of their own; the tables they return are what later batches read.
      tables: what batches read before any hook has made a new one.
      initialize: from random parameters and the first state to those to begin with, such as another run's.
      describe_batch: names the examples of a step's batch, for the error message.
      profile: which steps are traced, if any.

    Returns:
      the state after the last step.

    Raises:
      NonFiniteLoss: the loss, gradient or update is NaN or infinite. What was saved stays.
      CheckpointError: a checkpoint cannot be written, or none can be read. What was saved stays.
      Interrupted: Ctrl-C or SIGTERM; the state is saved.
      LockedError: another process trains in the run directory.
      SpecError: a rule of `layout` matches nothing, or does not fit.
      ProfileError: the steps to trace are not all still to come.
    """
    mesh = layout.mesh() if mesh is None else mesh
    start = Start(task, optimizer, mesh, layout, schedule.microbatches, schedule.average_decay)
    key = meshes.random_key(seed, mesh)
    given = {} if tables is None else tables
    folder = Path(run_dir) / "checkpoints"
    with exclusive(run_dir), Checkpoints(folder, keep=schedule.keep_checkpoints) as checkpoints:
        example = next(batches(0, given))
        step, state, window, position = _begin(start, example, checkpoints, key, initialize)
        in_use = Tables(run_dir, given, position.get("tables", {}))
        first = int(state.step)
        if profile is not None:
            profile.check(first, schedule.total_steps)
        with Log(run_dir, first, schedule.total_steps, position, mesh) as log, catch_signals() as stop:
            run = _Run(
                task,
                schedule,
                mesh,
                checkpoints,
                evaluators,
                hooks,
                in_use,
                describe_batch,
                log,
                stop,
                profile,
            )
            run.announce(state)
            if not first:
                run.evaluate(state)
            elif position.get("due"):
                run.round(state)
            if first < schedule.total_steps:
                feed = _Feed(batches, mesh, schedule.microbatches, first, in_use)
                compiled = CompiledSteps(watched(step), mesh, log)
                try:
                    state = run.steps(compiled, state, window, feed, key)
                finally:
                    if profile is not None:  # stopped before its last step
                        profile.stop()
            if run.agreement.settle() is not None:  # after the last step, whose state is saved
                checkpoints.wait()
                raise Interrupted(run.agreement.signum, int(state.step))
    return state


def _begin(
    start: Start,
    example: Mapping[str, np.ndarray],
    checkpoints: Checkpoints,
    key: jax.Array,
    initialize: Initialize | None,
) -> tuple[Step, TrainState, Window, dict[str, Any]]:
    """Returns where the run stands: step, state, sums of the window, and the position saved with them."""
    step = start.step()
    batch = meshes.shard_batch(example, start.mesh, whole=False, parts=start.microbatches)
    like = start.shapes(key, batch)
    window = start.window(step, like, batch, key)
    if checkpoints.latest_step() is None:
        return step, start.state(key, batch, like, initialize), meshes.replicate(window, start.mesh), {}
    state, position = checkpoints.restore(like)
    window = _window_from_json(window, position["window"])
    return step, state, meshes.replicate(window, start.mesh), position


class _Run:
    """The steps of one call of `train`, and what happens between them."""

    def __init__(
        self,
        task: Task,
        schedule: Schedule,
        mesh: Mesh,
        checkpoints: Checkpoints,
        evaluators: Sequence[Evaluator],
        hooks: Sequence[Hook],
        tables: Tables,
        describe_batch: Callable[[int], str],
        log: Log,
        stop: StopRequest,
        profile: Profile | None,
    ):
        self._task, self._schedule, self._mesh, self._checkpoints = task, schedule, mesh, checkpoints
        self._evaluators, self._hooks, self._tables = evaluators, hooks, tables
        self._describe_batch, self._log = describe_batch, log
        self._profile = profile
        self.agreement = Agreement(stop, mesh)
        self._row: tuple[int, Window] | None = None  # a row that is yet to be written
        # Of a step that is yet to end: its signal on the device, its operations, the wait for its batch.
        self._running: tuple[jax.Array, float, float] | None = None

    def announce(self, state: TrainState) -> None:
        parameters = sum(x.size for x in jax.tree.leaves(state.params))
        trained = frozen.trained(state.params, frozen.of(self._task))
        of_them = "" if trained == parameters else f" ({trained:,} of them trained)"
        self._log.say(
            f"{parameters:,} parameters{of_them}, {self._mesh.size} device(s), from step {int(state.step):,} "
            f"to {self._schedule.total_steps:,}"
        )
        if self._schedule.microbatches > 1:
            self._log.say(
                f"each batch is computed as {self._schedule.microbatches} microbatches: what a loss compares "
                "within a batch, such as in-batch negatives, it compares within a microbatch only"
            )

    def steps(
        self, compiled: CompiledSteps, state: TrainState, window: Window, feed: "_Feed", key: jax.Array
    ) -> TrainState:
        schedule = self._schedule
        empty = jax.device_get(empty_window(window.sums))
        self._log.begin()
        for step in range(int(state.step) + 1, schedule.total_steps + 1):
            batch, waited = feed.take()
            if compiled.is_new(batch):
                self._settle()
            with self._traced(step):
                state, window, signal = compiled(state, window, batch, key, self.agreement.signals())
            flops = compiled.flops(batch)
            if self._running is None:  # the device was idle: what came before was no training
                self._log.restart_clock()
            last = step == schedule.total_steps
            if self._profile is not None and self._profile.ends(step):
                signal.block_until_ready()
                self._profile.stop()
            hook_due = not last and any(step % hook.every == 0 for hook in self._hooks)
            if not (last or hook_due):
                feed.prepare()  # while the device is busy
            self._settle((signal, flops, waited))
            if last or step % schedule.log_every == 0:
                self._row = step, window
                window = meshes.replicate(empty, self._mesh)
            due = last or hook_due or step % schedule.eval_every == 0
            save = last or step % schedule.save_every == 0
            stopped_by = self.agreement.signum  # read once: a signal may come at any moment
            if not (due or save or stopped_by is not None):
                continue
            self._settle()
            self._check(window)
            if stopped_by is None and due:
                self.round(state)
                due, stopped_by = False, self.agreement.signum
                if hook_due:
                    feed.restart(step, self._tables)
            if save or stopped_by is not None:
                self._save(state, window, due)
            if stopped_by is not None:
                self._checkpoints.wait()
                raise Interrupted(stopped_by, step)
        return state

    def _traced(self, step: int) -> contextlib.AbstractContextManager[None]:
        if self._profile is None:
            return contextlib.nullcontext()
        if self._profile.begins(step):
            self._settle()  # what runs before is not to be seen
        return self._profile.of_step(step)

    def round(self, state: TrainState) -> None:
        """Calls the hooks and evaluators that are due after a step."""
        step = int(state.step)
        for hook in self._hooks:
            if step % hook.every == 0 and step < self._schedule.total_steps:
                self._tables.replace(step, hook(state), keep=self._checkpoints.positions())
        if step % self._schedule.eval_every == 0 or step == self._schedule.total_steps:
            self._keep_best(state, self.evaluate(state))

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Calls the evaluators and writes what they give. Raises ValueError if `best_measure` is missing."""
        measured = {name: float(value) for evaluator in self._evaluators for name, value in evaluator(state)}
        best = self._schedule.best_measure
        if best and best not in measured:
            raise ValueError(
                f"best_measure is {best!r}; the evaluators gave {', '.join(measured) or 'nothing'}"
            )
        measured = same_everywhere(measured)
        if measured:
            self._log.write_measures(int(state.step), measured)
        return measured

    def _settle(self, running: tuple[jax.Array, float, float] | None = None) -> None:
        """Waits for the step before, which `running` follows on the device, and writes the row it completed.

        So a row is read one step late and the device is never idle for it.
        """
        if self._running is not None:
            signal, flops, waited = self._running
            signal.block_until_ready()
            self.agreement.hear(signal)
            self._log.tick(flops, waited)
        self._running = running
        if self._row is not None:
            step, window = self._row
            self._check(window)
            self._log.write(step, window)
            self._checkpoints.check()
            self._row = None

    def _check(self, window: Window) -> None:
        step = int(window.first_bad)
        if step >= 0:
            try:
                self._checkpoints.wait()
                saved = self._checkpoints.last_good()
            except CheckpointError as error:
                saved = str(error)
            raise NonFiniteLoss(
                f"loss, gradient or update is not finite at step {step} ({self._describe_batch(step - 1)}); "
                f"{saved}"
            )

    def _save(self, state: TrainState, window: Window, due: bool) -> None:
        """Saves the state with what else the run needs to go on as though it had not stopped."""
        position = {
            "tables": dict(self._tables.in_use),  # a copy: it is written while the run goes on
            "window": _window_to_json(window),
            "seconds": self._log.seconds,
            "rows": self._log.rows,
            "due": due,  # hooks and evaluators of this step are still to be called
        }
        self._checkpoints.save(state, position)

    def _keep_best(self, state: TrainState, measured: Mapping[str, float]) -> None:
        name = self._schedule.best_measure
        if name and math.isfinite(measured[name]):
            best = self._checkpoints.best_value()
            if best is None or measured[name] > best:
                of_task = kept(self._task, state.state)
                self._checkpoints.save_best(state.replace(state=of_task), measured[name])


class _Feed:
    """Batches on the devices, the next one made while a step runs."""

    def __init__(self, batches: Batches, mesh: Mesh, parts: int, step: int, tables: Tables):
        self._batches, self._mesh, self._parts = batches, mesh, parts
        self.restart(step, tables)

    def restart(self, step: int, tables: Tables) -> None:
        """Goes on after `step` with the tables now in use."""
        self._stream = self._batches(step, tables.arrays)
        self._next, self._waited = None, 0.0

    def prepare(self) -> None:
        """Makes the next batch."""
        start = time.monotonic()
        batch = next(self._stream, None)
        if batch is None:
            raise ValueError("batches: the iterator ended before the last step")
        self._next = meshes.shard_batch(batch, self._mesh, whole=False, parts=self._parts)
        self._waited = time.monotonic() - start

    def take(self) -> tuple[Batch, float]:
        """Returns the next batch, and the seconds that this process waited for it."""
        if self._next is None:
            self.prepare()
        batch, self._next = self._next, None
        return batch, self._waited


def _window_to_json(window: Window) -> dict[str, Any]:
    window = jax.device_get(window)
    fields = {name: float(getattr(window, name)) for name in ("steps", "tokens", "slots")}
    return fields | {"sums": {name: float(total) for name, total in window.sums.items()}}


def _window_from_json(like: Window, fields: Mapping[str, Any]) -> Window:
    sums = {name: np.float32(fields["sums"][name]) for name in like.sums}
    rest = {name: np.float32(fields[name]) for name in ("steps", "tokens", "slots")}
    return like.replace(sums=sums, **rest)
