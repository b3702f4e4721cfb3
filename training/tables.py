"""Tables that batches read and that hooks write anew while a run trains, such as mined negatives.

    run_dir/tables/<name>-<step>.npy

A batch at step t is a function of the seed, t and the tables in use; a checkpoint therefore names them.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from training.checkpoints import CheckpointError
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
      names: by table, the file in use instead, as a checkpoint says.

    Raises:
      CheckpointError: a table that a checkpoint names is gone or damaged.
    """

    def __init__(self, run_dir: str | Path, given: Mapping[str, np.ndarray], names: Mapping[str, str]):
        self._folder = Path(run_dir) / FOLDER
        self.names = dict(names)
        self.arrays = {**given, **{table: _load(self._folder / file) for table, file in names.items()}}

    def replace(self, step: int, made: Mapping[str, np.ndarray], keep: Iterable[Mapping[str, Any]]) -> None:
        """Writes and uses the tables that a hook made after a step.

        Files that are neither in use now nor named by the positions `keep` of checkpoints are deleted.
        """
        for table, array in made.items():
            file = f"{table}-{step}.npy"
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = self._folder / f"{table}.partial.npy"
            np.save(partial, array)
            partial.replace(self._folder / file)
            self.names[table], self.arrays[table] = file, array
        for path in unused(self._folder.parent, [{"tables": self.names}, *keep]):
            path.unlink()


def _load(file: Path) -> np.ndarray:
    try:
        return np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"the table {file}, which a checkpoint names, cannot be read: {error}"
        ) from error


def unused(run_dir: Path, positions: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Returns the files that hooks wrote and that none of the given positions of checkpoints names."""
    used = {file for position in positions for file in names_in(position).values()}
    found = (path for path in sorted((run_dir / FOLDER).glob("*.npy")) if path.name not in used)
    return [path for path in found if re.fullmatch(r".+-\d+\.npy", path.name)]


def names_in(position: Mapping[str, Any]) -> dict[str, str]:
    """Returns the tables that a checkpoint's position names."""
    return dict(position.get("tables", {}))
