"""Where a run's numbers go: metrics.jsonl, one object a line, and TensorBoard event files.

What depends on the clock is named `time/...`; everything else is the same each time a run is run.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from training.checkpoints import CheckpointError

FILE, BOARD = "metrics.jsonl", "tensorboard"
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
        if len(kept) < keep_rows:
            print(f"warning: {self._path} has only {len(kept)} of {keep_rows} rows", file=sys.stderr)
        self.rows = len(kept)
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(self._path)
        self._file = self._path.open("a", buffering=1)
        self._board = SummaryWriter(str(Path(run_dir) / BOARD), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars of one step; JSON has no NaN or infinity, so those are written as null."""
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **row, f"{TIME}unix": time.time()}) + "\n")
        self.rows += 1
        self._check_board()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        with contextlib.suppress(OSError):
            self._check_board()
            self._board.close()

    def _check_board(self) -> None:
        """Its thread dies of a full disk in silence; the next event would then wait for ever."""
        if not self._board.file_writer.event_writer._worker.is_alive():
            raise OSError(f"TensorBoard events cannot be written to {self._path.parent / BOARD}")


def training_seconds(run_dir: str | Path) -> float:
    """Returns the seconds that a run's steps took, without compiling and evaluating, as its log has them."""
    return round(sum(row.get(f"{TIME}seconds", 0.0) for row in read(run_dir)), 1)


def without_time(row: Mapping[str, float]) -> dict[str, float]:
    """Returns what of a row does not depend on the clock."""
    return {name: value for name, value in row.items() if not name.startswith(TIME)}


def read(run_dir: str | Path) -> list[dict[str, float]]:
    """Returns the rows of a run's metrics.jsonl; a last line cut short by a kill is left out.

    Raises:
      CheckpointError: another line is damaged.
    """
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
                raise CheckpointError(f"{path}, line {number} is damaged: {error}") from None
    return rows
