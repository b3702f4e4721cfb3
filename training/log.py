"""What a run says of itself while it trains: rows of metrics, and progress on the terminal."""

import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from training.metrics import MetricWriter
from training.progress import Progress
from training.task import Batch, Metrics, TrainState


class Log:
    """Averages the metrics of steps until they are written; a context manager.

    Metrics stay on the device until `write`, so that adding them costs no synchronization.

    Args:
      run_dir: gets metrics.jsonl and tensorboard/; what they hold beyond the state's step is cut.
      state: before the first step to come.
      total_steps: the step to stop at.
      mesh: the devices, to be told.
    """

    def __init__(self, run_dir: str | Path, state: TrainState, total_steps: int, mesh: Mesh):
        first = int(state.step)
        self._writer = MetricWriter(run_dir, first)
        self._progress = Progress(total_steps, unit="step", title="training", done=first)
        parameters = sum(x.size for x in jax.tree.leaves(state.params))
        self._progress.say(f"{parameters:,} parameters, {mesh.size} device(s), from step {first:,}")
        self.restart_clock()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception) -> None:
        self._progress.close()
        self._writer.close()

    def restart_clock(self) -> None:
        """Begins a new average; evaluating and saving do not count as training."""
        self._window: list[Metrics] = []
        self._masks: list[jax.Array] = []
        self._start = time.monotonic()

    def add(self, metrics: Metrics, batch: Batch) -> None:
        """Takes in one step's metrics and batch."""
        self._window.append(metrics)
        self._masks.extend(array.sum() for name, array in batch.items() if name.endswith("mask"))

    def write(self, step: int) -> None:
        """Writes the means since the clock was restarted, with steps and tokens per second."""
        rows, tokens = jax.device_get((self._window, self._masks))
        seconds = time.monotonic() - self._start
        values = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        values["steps_per_second"] = len(rows) / seconds
        values["tokens_per_second"] = float(np.sum(tokens)) / seconds
        self._writer.write(step, values)
        shown = {"loss": f"{values['loss']:.4f}", "tokens/s": f"{values['tokens_per_second']:,.0f}"}
        self._progress.update(step, shown)

    def write_measures(self, step: int, measured: Mapping[str, float]) -> None:
        """Writes what evaluators gave."""
        self._writer.write(step, measured)
        self._progress.say(f"step {step:,}: " + ", ".join(f"{n} {v:.4f}" for n, v in measured.items()))
