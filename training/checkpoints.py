"""Checkpoints of a run: the latest states to resume from, and the best parameters by a dev measure.

checkpoints/latest/<step>/    the whole TrainState and the position of the run, the newest `keep` of them
checkpoints/best/<step>/      the parameters that are evaluated, and the Task's state, of the best evaluation
checkpoints/best.json         its step and value

A checkpoint appears under its name whole or not at all, with the digests of its files (digests.json), so
that damage is noticed before anything is read from it.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from training import distributed
from training.files import digest
from training.task import TrainState

LATEST, BEST = "latest", "best"
_RECORD = "best.json"
_DIGESTS, _POSITION = "digests.json", "position.json"
DAMAGED = ".damaged"
_UNFINISHED = "*.orbax-checkpoint-tmp*"
_METADATA = "_CHECKPOINT_METADATA"
_WRITTEN_LATER = ("commit_success.txt", _METADATA)  # by orbax, after the digests


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or cannot be written; the message names it."""


class Checkpoints:
    """Saves in the background; `close()` waits for what is under way.

    Args:
      folder: the run's `checkpoints` folder.
      keep: how many of the latest states to keep.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        self._folder = Path(folder).absolute()
        self._keep = keep
        self._writing: Path | None = None
        self._unsealed: Path | None = None
        self._position: Mapping[str, Any] | None = None
        _quiet_orbax()
        self._remove_unfinished()  # left by a run that was killed
        distributed.wait("the checkpoints' folder")
        self._best = best_record(self._folder)
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._complete),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            print(f"also: {failure}", file=sys.stderr, flush=True)  # the first error is the one to raise

    def save(self, state: TrainState, beside: Mapping[str, Any]) -> None:
        """Saves the state to resume from, named by its step; `beside` is JSON and comes back with it.

        Raises:
          CheckpointError: this one, or the one that was still being written, cannot be saved.
        """
        self.wait()
        self._prune()
        path = self._folder / LATEST / str(int(state.step))
        self._remove(path)  # of a step that is run again, since it was damaged
        self._write(path, state, beside)

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint that the first process sees, sound or not."""
        return _from_leader(max(steps(self._folder / LATEST), default=None))

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the newest sound state, placed and shaped as `like` (arrays or shapes), and its position.

        It may have been saved on another mesh, by another number of processes.

        One that is damaged is named on stderr, set aside as `<step>.damaged`, and the one before it used.

        Raises:
          CheckpointError: there is none, none is sound, or it does not fit `like`.
        """
        self.wait()
        found = sorted(steps(self._folder / LATEST), reverse=True)
        if not found:
            raise CheckpointError(f"no checkpoint in {self._folder / LATEST}")
        # One process reads all files for their digests, and tells the others what it found.
        step = _from_leader(self._newest_sound(found) if distributed.is_leader() else None)
        if step is None:
            raise CheckpointError(f"all checkpoints in {self._folder / LATEST} are damaged: {found}")
        path = self._folder / LATEST / str(step)
        state = _read(path, like)
        self._set_aside(above=step)
        return state, position(path)

    def _newest_sound(self, found: Sequence[int]) -> int | None:
        """Returns the first step without damage, and names on stderr those before it."""
        for step in found:
            path = self._folder / LATEST / str(step)
            problem = next(damage(path), None)
            if problem is None:
                return step
            print(f"checkpoint {path} is damaged: {problem}", file=sys.stderr, flush=True)
        return None

    def positions(self) -> list[Mapping[str, Any]]:
        """Returns what was saved beside each of the latest states, with the one that is being written.

        For the first process alone, which deletes what none of them needs; the others get nothing.
        """
        if not distributed.is_leader():
            return []
        paths = [self._folder / LATEST / str(step) for step in steps(self._folder / LATEST)]
        found = [position(path) for path in paths if not next(damage(path, read=False), None)]
        return found if self._position is None else [*found, self._position]

    def save_best(self, state: TrainState, value: float) -> None:
        """Saves what is evaluated as the best so far, with the measure's value; done when it returns.

        A step that is on record already is left as it is.

        Raises:
          CheckpointError: it cannot be saved; the record and what it names stay.
        """
        step = int(state.step)
        if self._best is not None and self._best["step"] == step:
            return
        self.wait()
        path = self._folder / BEST / str(step)
        self._remove(path)  # left by a run that was killed before it was recorded
        weights = {"params": state.eval_params, "state": state.state}
        self._write(path, weights, None)
        self.wait()  # best.json must never name what is not there yet
        self._best = {"step": step, "value": value}
        if distributed.is_leader():
            with self._reported():
                _write_json(self._folder / _RECORD, self._best)
            for other in steps(self._folder / BEST):
                if other != step:
                    shutil.rmtree(self._folder / BEST / str(other))

    def best_value(self) -> float | None:
        """Returns the best evaluation's value, None before the first."""
        return None if self._best is None else self._best["value"]

    def check(self) -> None:
        """Raises CheckpointError if the checkpoint being written has failed; does not wait for it."""
        with self._reported():
            self._checkpointer.check_for_errors()

    def wait(self) -> None:
        """Waits until nothing is being written. Raises CheckpointError if it could not be."""
        with self._reported():
            self._checkpointer.wait_until_finished()
            self._seal()

    def close(self) -> None:
        """Waits, deletes what is beyond `keep`, and ends the background thread."""
        try:
            self.wait()
            self._prune()
        finally:
            self._checkpointer.close()
            self._remove_unfinished()

    def _write(self, path: Path, tree: Any, beside: Mapping[str, Any] | None) -> None:
        self._writing, self._position = path, beside
        self._unsealed = path
        with self._reported():
            self._checkpointer.save(path, ocp.args.Composite(state=ocp.args.StandardSave(tree)))

    def _complete(self) -> None:
        """Runs when all processes have written and the folder does not bear its name yet."""
        if not distributed.is_leader():
            return
        (unfinished,) = self._writing.parent.glob(f"{self._writing.name}.orbax-checkpoint-tmp*")
        if self._position is not None:
            _write_json(unfinished / _POSITION, self._position)
        _write_json(unfinished / _DIGESTS, _digests(unfinished, _files(unfinished)))

    def _seal(self) -> None:
        """Adds to the digests those of the files that orbax writes when all else is there.

        Until then a checkpoint is sound without them: a kill may come in between.
        """
        path, self._unsealed = self._unsealed, None
        failed = path is not None and not (path / _DIGESTS).exists()  # which was said already
        if path is None or failed or not distributed.is_leader():
            return
        late = [file for file in path.rglob("*") if file.name in _WRITTEN_LATER]
        before = json.loads((path / _DIGESTS).read_text())
        _write_json(path / _DIGESTS, before | _digests(path, late))

    def _remove(self, path: Path) -> None:
        if distributed.is_leader():
            shutil.rmtree(path, ignore_errors=True)

    def _remove_unfinished(self) -> None:
        if distributed.is_leader():
            for kind in (LATEST, BEST):
                (self._folder / kind).mkdir(parents=True, exist_ok=True)
                for path in (self._folder / kind).glob(_UNFINISHED):
                    shutil.rmtree(path)

    def _prune(self) -> None:
        if distributed.is_leader():
            for step in sorted(steps(self._folder / LATEST))[: -self._keep]:
                shutil.rmtree(self._folder / LATEST / str(step))

    def _set_aside(self, above: int) -> None:
        if not distributed.is_leader():
            return
        for step in steps(self._folder / LATEST):
            if step > above:
                path = self._folder / LATEST / str(step)
                shutil.rmtree(f"{path}{DAMAGED}", ignore_errors=True)
                path.rename(f"{path}{DAMAGED}")

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Turns whatever fails while saving into a CheckpointError of one line."""
        try:
            yield
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {self._writing} cannot be saved: {_reason(error)}; {self.last_good()}"
            ) from error

    def last_good(self) -> str:
        """Returns what an error says of the state to resume from."""
        found = sorted(steps(self._folder / LATEST), reverse=True)
        sound = (s for s in found if not next(damage(self._folder / LATEST / str(s), read=False), None))
        step = next(sound, None)
        return "nothing was saved yet" if step is None else f"the last good checkpoint is step {step}"


def read_best(folder: str | Path, params: Any, state: Any) -> tuple[int, Any, Any]:
    """Returns (step, params, state) of the best evaluation, shaped as the arguments.

    Only reads, so that a run may be looked at while it trains.

    Args:
      folder: the run's `checkpoints` folder.
      params, state: arrays of the shapes and dtypes to restore.

    Raises:
      CheckpointError: there is none, it is damaged, or it does not fit.
    """
    path, step = _best_path(folder)
    weights = _read(path, {"params": params, "state": state})
    return step, weights["params"], weights["state"]


def check_best(folder: str | Path) -> None:
    """Raises CheckpointError unless there is a best checkpoint of the right size; reads nothing of it."""
    _best_path(folder, read=False)


def read_best_params(folder: str | Path) -> tuple[int, Any, Any]:
    """Returns (step, params, the Task's state) of the best evaluation, NumPy arrays in the shapes they have
    there.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    _quiet_orbax()
    path, step = _best_path(folder)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # whatever it was trained on
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path / "state").item_metadata.tree
    like = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), metadata)
    weights = jax.device_get(_read(path, like))
    return step, weights["params"], weights.get("state") or {}


def steps(folder: Path) -> list[int]:
    """Returns the steps that have a checkpoint in `latest` or `best`, in no order."""
    return [int(path.name) for path in folder.glob("*") if re.fullmatch("[0-9]+", path.name)]


def damage(path: Path, *, read: bool = True) -> Iterator[str]:
    """Yields what is wrong with a checkpoint, if anything.

    Args:
      path: its folder.
      read: whether to read every file, to notice a changed byte, and not only look at sizes.
    """
    if not (path / _DIGESTS).is_file():
        yield f"it has no {_DIGESTS}"
        return
    try:
        digests = json.loads((path / _DIGESTS).read_text())
        entries = [(name, entry["bytes"], entry["sha256"]) for name, entry in digests.items()]
        json.loads((path / _METADATA).read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"{_DIGESTS} or {_METADATA} cannot be read: {error!r}"
        return
    files = [(name, path / name, size, sha256) for name, size, sha256 in entries]
    for name, file, size, sha256 in [*files, *_tables(path)]:
        if not file.is_file():
            yield f"{name} is missing"
        elif file.stat().st_size != size:
            yield f"{name} has {file.stat().st_size:,} bytes of {size:,}"
        elif read and digest(file) != sha256:
            yield f"{name} is not as it was written"


def _tables(path: Path) -> list[tuple[str, Path, int, str]]:
    """Returns name, place, size and digest of the tables that a checkpoint names."""
    try:
        tables = position(path).get("tables", {}) if (path / _POSITION).is_file() else {}
    except ValueError:  # its digest says so too
        return []
    folder = path.parents[2]
    return [
        (entry["file"], folder / entry["file"], entry["bytes"], entry["sha256"]) for entry in tables.values()
    ]


def _from_leader(step: int | None) -> int | None:
    """Returns the first process's step in every process: a shared disk may show others another one."""
    if not distributed.several():
        return step
    step = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
    return None if step < 0 else step


def best_record(folder: Path) -> dict[str, Any] | None:
    """Returns `step` and `value` of the best evaluation, None before the first.

    Raises:
      CheckpointError: best.json is damaged.
    """
    file = folder / _RECORD
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_text())
        return {"step": int(record["step"]), "value": float(record["value"])}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is damaged: {error!r}; it must say which of {file.parent / BEST} is the best, as "
            '{"step": 100, "value": 0.5}'
        ) from error


def position(path: Path) -> dict[str, Any]:
    """Returns what was saved beside the state of one of the latest checkpoints."""
    return json.loads((path / _POSITION).read_text())


def size(path: Path) -> int:
    """Returns the bytes of all files of a checkpoint."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _best_path(folder: str | Path, *, read: bool = True) -> tuple[Path, int]:
    folder = Path(folder).absolute()
    record = best_record(folder)
    if record is None:
        raise CheckpointError(f"no best checkpoint in {folder}")
    path = folder / BEST / str(record["step"])
    for problem in damage(path, read=read and distributed.is_leader()):
        raise CheckpointError(f"checkpoint {path} is damaged: {problem}")
    return path, record["step"]


def _read(path: Path, like: Any) -> Any:
    _quiet_orbax()
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(path, arguments)["state"]
    except Exception as error:  # orbax raises bare ones too
        raise CheckpointError(f"checkpoint {path} cannot be restored: {_reason(error)}") from error


def _digests(folder: Path, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    return {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": digest(file)}
        for file in files
    }


def _files(folder: Path) -> list[Path]:
    return [f for f in sorted(folder.rglob("*")) if f.is_file() and f.name not in _WRITTEN_LATER]


def _write_json(file: Path, content: Any) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(file)


def _reason(error: Exception) -> str:
    """What went wrong, in a line; TensorStore's messages hold the system's error somewhere inside."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    return (str(error).strip() or repr(error)).splitlines()[0][:300]


def _quiet_orbax() -> None:
    """Its log repeats, over several screens, the errors that it also raises."""
    logger = logging.getLogger("absl")
    if _not_of_orbax not in logger.filters:
        logger.addFilter(_not_of_orbax)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname
