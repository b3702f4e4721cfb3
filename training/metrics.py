"""Where a run's numbers go: metrics.jsonl, one object a line, and TensorBoard event files.

What depends on the clock is named `time/...`; everything else is the same each time a run is run.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

FILE = "metrics.jsonl"
TIME = "time/"


class MetricWriter:
    """Appends to a run's metrics.

    Args:
      run_dir: the run directory.
      first_step: steps done before.
      keep_rows: how many rows of an earlier start are kept; those after them are cut.

    Attributes:
      rows: how many there are.
    """

    def __init__(self, run_dir: str | Path, first_step: int = 0, keep_rows: int = 0):
        self._path = Path(run_dir) / FILE
        kept = read(run_dir)[:keep_rows]
        self.rows = len(kept)
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(self._path)
        self._file = self._path.open("a", buffering=1)
        self._board = SummaryWriter(str(Path(run_dir) / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars of one step; JSON has no NaN or infinity, so those are written as null."""
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **row, f"{TIME}unix": time.time()}) + "\n")
        self.rows += 1
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def training_seconds(run_dir: str | Path) -> float:
    """Returns the seconds that a run's steps took, without compiling and evaluating, as its log has them."""
    return round(sum(row.get(f"{TIME}seconds", 0.0) for row in read(run_dir)), 1)


def without_time(row: Mapping[str, float]) -> dict[str, float]:
    """Returns what of a row does not depend on the clock."""
    return {name: value for name, value in row.items() if not name.startswith(TIME)}


def read(run_dir: str | Path) -> list[dict[str, float]]:
    """Returns the rows of a run's metrics.jsonl; a last line cut short by a kill is left out."""
    path = Path(run_dir) / FILE
    if not path.exists():
        return []
    rows = []
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: {error}") from None
    return rows
