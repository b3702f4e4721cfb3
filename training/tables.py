"""Tables that batches read and that hooks write anew while a run trains, such as mined negatives.

    run_dir/tables/<name>-<step>.npy

A batch at step t is a function of the seed, t and the tables in use; a checkpoint therefore names them, with
their digests.
"""

import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from training import distributed
from training.checkpoints import CheckpointError
from training.files import digest
from training.task import TrainState

FOLDER = "tables"


class Hook(Protocol):
    """What a program hands to the loop to be called every `every` steps."""

    every: int

    def __call__(self, state: TrainState) -> Mapping[str, np.ndarray]:
        """Returns tables by name, a function of the state alone; {} where it only looks."""
        ...


class Tables:
    """The tables in use: those the program gave, or the newest that a hook made.

    Args:
      run_dir: the run directory.
      given: by name, the tables that a run begins with.
      in_use: by table, what a checkpoint names instead: `file` in the run directory, `bytes` and `sha256`.

    Attributes:
      arrays: the tables by name.
      in_use: what a checkpoint is to name.

    Raises:
      CheckpointError: a table that a checkpoint names cannot be read.
    """

    def __init__(
        self, run_dir: str | Path, given: Mapping[str, np.ndarray], in_use: Mapping[str, Mapping[str, Any]]
    ):
        self._run_dir = Path(run_dir)
        self.in_use = dict(in_use)
        read = {table: load(self._run_dir / entry["file"]) for table, entry in in_use.items()}
        self.arrays = {**given, **read}

    def replace(self, step: int, made: Mapping[str, np.ndarray], keep: Iterable[Mapping[str, Any]]) -> None:
        """Writes and uses the tables that a hook made after a step; all processes use what the first wrote.

        Files that are neither in use now nor named by the positions `keep` of checkpoints are deleted.
        """
        for table, array in made.items():
            file = self._run_dir / FOLDER / f"{table}-{step}.npy"
            with distributed.leader_first(f"writing {file}"):
                if distributed.is_leader():
                    save(file, array)
                self.arrays[table] = load(file)
            self.in_use[table] = {
                "file": f"{FOLDER}/{file.name}",
                "bytes": file.stat().st_size,
                "sha256": digest(file),
            }
        if distributed.is_leader():
            for path in unused(self._run_dir, [{"tables": self.in_use}, *keep]):
                path.unlink()


def save(file: Path, array: np.ndarray) -> None:
    """Writes a table whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.stem}.{uuid.uuid4().hex}.npy")  # others may write the same table
    try:
        np.save(partial, array)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def load(file: Path) -> np.ndarray:
    """Reads a table. Raises CheckpointError where it is missing or damaged."""
    try:
        return np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"the table {file} cannot be read: {error}") from error


def unused(run_dir: Path, positions: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Returns the files that hooks wrote and that none of the given positions of checkpoints names."""
    named = (entry for position in positions for entry in position.get("tables", {}).values())
    used = {run_dir / entry["file"] for entry in named}
    found = (path for path in sorted((run_dir / FOLDER).glob("*.npy")) if path not in used)
    return [path for path in found if re.fullmatch(r".+-[0-9]+\.npy", path.name)]
