"""Where a run's numbers go: metrics.jsonl, one object a line, and TensorBoard event files."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

FILE = "metrics.jsonl"


class MetricWriter:
    """Appends to a run's metrics; starting again at `first_step` cuts what came after it.

    Args:
      run_dir: the run directory.
      first_step: steps beyond it, left by a run that was cut off, are dropped.
    """

    def __init__(self, run_dir: str | Path, first_step: int = 0):
        self._path = Path(run_dir) / FILE
        kept = [row for row in read(run_dir) if row["step"] <= first_step] if first_step else []
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(self._path)
        self._file = self._path.open("a", buffering=1)
        self._board = SummaryWriter(str(Path(run_dir) / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars of one step; JSON has no NaN or infinity, so those are written as null."""
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "wall_time": time.time(), **row}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def training_seconds(run_dir: str | Path) -> float:
    """Returns the seconds that a run's steps took, without evaluations, as its log has them."""
    seconds, before = 0.0, 0
    for row in read(run_dir):
        if row.get("steps_per_second"):
            seconds += (row["step"] - before) / row["steps_per_second"]
            before = row["step"]
    return round(seconds, 1)


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
