"""Checkpoints of a run: the latest states to resume from, and the best parameters by a dev measure.

checkpoints/latest/<step>/    the whole TrainState, the newest `keep` of them
checkpoints/best/<step>/      parameters and Task state of the best evaluation so far
"""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from training.task import TrainState

_RECORD = "best.json"
_UNREADABLE = (ValueError, KeyError, OSError)


class CheckpointError(RuntimeError):
    """A checkpoint is missing or cannot be read; the message names it."""


class Checkpoints:
    """Saves in the background; `close()` waits for what is under way.

    Args:
      folder: the run's `checkpoints` folder.
      keep: how many of the latest states to keep.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        folder = Path(folder).absolute()
        self._best_file = folder / _RECORD
        self._latest = ocp.CheckpointManager(folder / "latest", options=_options(keep))
        self._best = ocp.CheckpointManager(folder / "best", options=_options(None))

    def save(self, state: TrainState) -> None:
        """Saves the state to resume from, named by its step."""
        self._latest.save(int(state.step), args=ocp.args.StandardSave(state), force=True)

    def latest_step(self) -> int | None:
        return self._latest.latest_step()

    def restore(self, like: TrainState) -> TrainState:
        """Returns the latest state, placed and shaped as `like`.

        Raises:
          CheckpointError: there is none, or it does not fit `like`.
        """
        step = self._latest.latest_step()
        if step is None:
            raise CheckpointError(f"no checkpoint in {self._latest.directory}")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return self._latest.restore(step, args=ocp.args.StandardRestore(target))
        except _UNREADABLE as error:
            path = self._latest.directory / str(step)
            raise CheckpointError(f"checkpoint {path} cannot be restored: {error}") from error

    def save_best(self, state: TrainState, value: float) -> None:
        """Saves parameters and Task state as the best so far, with the measure's value."""
        step = int(state.step)
        if step in self._best.all_steps():  # left by a run that was killed before it was recorded
            self._best.delete(step)
        self._best.save(step, args=ocp.args.StandardSave(_weights(state)), force=True)
        self._best.wait_until_finished()  # best.json must never name what is not there yet
        before = self._best_record()
        partial = self._best_file.with_suffix(".partial")
        partial.write_text(json.dumps({"step": step, "value": value}))
        partial.replace(self._best_file)
        if before is not None and before["step"] != step:
            self._best.delete(before["step"])

    def best_value(self) -> float | None:
        """Returns the best evaluation's value, None before the first."""
        record = self._best_record()
        return None if record is None else record["value"]

    def _best_record(self) -> dict[str, Any] | None:
        return json.loads(self._best_file.read_text()) if self._best_file.exists() else None

    def close(self) -> None:
        for manager in (self._latest, self._best):
            manager.wait_until_finished()
            manager.close()


def read_best(folder: str | Path, params: Any, state: Any) -> tuple[int, Any, Any]:
    """Returns (step, params, state) of the best evaluation, shaped as the arguments.

    Only reads, so that a run may be looked at while it trains.

    Args:
      folder: the run's `checkpoints` folder.
      params, state: arrays of the shapes and dtypes to restore.

    Raises:
      CheckpointError: there is none, or it does not fit.
    """
    folder = Path(folder).absolute()
    if not (folder / _RECORD).exists():
        raise CheckpointError(f"no best checkpoint in {folder}")
    step = json.loads((folder / _RECORD).read_text())["step"]
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"params": params, "state": state})
    path = folder / "best" / str(step) / "default"
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            weights = checkpointer.restore(path, target)
    except _UNREADABLE as error:
        raise CheckpointError(f"checkpoint {path} cannot be restored: {error}") from error
    return step, weights["params"], weights["state"]


def _weights(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "state": state.state}


def _options(keep: int | None) -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(max_to_keep=keep, step_prefix=None, cleanup_tmp_directories=True)
