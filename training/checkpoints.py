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
        self._best_file = folder / "best.json"
        self._latest = ocp.CheckpointManager(folder / "latest", options=_options(keep))
        self._best = ocp.CheckpointManager(folder / "best", options=_options(1))

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
        return _restore(self._latest, like)

    def save_best(self, state: TrainState, value: float) -> None:
        """Saves parameters and Task state as the best so far, with the measure's value."""
        step = int(state.step)
        self._best.save(step, args=ocp.args.StandardSave(_weights(state)), force=True)
        self._best.wait_until_finished()  # best.json must never name what is not there yet
        partial = self._best_file.with_suffix(".partial")
        partial.write_text(json.dumps({"step": step, "value": value}))
        partial.replace(self._best_file)

    def best_value(self) -> float | None:
        """Returns the best evaluation's value, None before the first."""
        return json.loads(self._best_file.read_text())["value"] if self._best_file.exists() else None

    def restore_best(self, params: Any, state: Any) -> tuple[int, Any, Any]:
        """Returns (step, params, state) of the best evaluation, shaped as the arguments.

        Raises:
          CheckpointError: there is none, or it does not fit.
        """
        weights = _restore(self._best, {"params": params, "state": state})
        return self._best.latest_step(), weights["params"], weights["state"]

    def close(self) -> None:
        for manager in (self._latest, self._best):
            manager.wait_until_finished()
            manager.close()


def _weights(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "state": state.state}


def _options(keep: int) -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(max_to_keep=keep, step_prefix=None, cleanup_tmp_directories=True)


def _restore(manager: ocp.CheckpointManager, like: Any) -> Any:
    step = manager.latest_step()
    if step is None:
        raise CheckpointError(f"no checkpoint in {manager.directory}")
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        return manager.restore(step, args=ocp.args.StandardRestore(target))
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"checkpoint {manager.directory}/{step} cannot be restored: {error}") from error
