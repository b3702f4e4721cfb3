"""The time of work that may be interrupted and gone on with."""

import json
import os
import time
from pathlib import Path


class Clock:
    """Adds up the time of all starts of some work: on the wall, and of all processors.

    Args:
      file: keeps the sums.
    """

    def __init__(self, file: Path):
        self._file = file
        before = json.loads(file.read_text()) if file.exists() else {}
        self._before = before.get("seconds", 0.0), before.get("cpu_seconds", 0.0)
        self._started = time.monotonic(), _cpu_seconds()

    def __enter__(self) -> "Clock":
        self._started = time.monotonic(), _cpu_seconds()
        return self

    def __exit__(self, *exception) -> None:
        self.save()

    @property
    def seconds(self) -> float:
        """On the wall, up to now."""
        return self._before[0] + time.monotonic() - self._started[0]

    @property
    def cpu_seconds(self) -> float:
        """Of this process and those it waited for, on all processors, up to now."""
        return self._before[1] + _cpu_seconds() - self._started[1]

    def save(self) -> None:
        """Writes the sums, so that work that is killed has them up to here."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps({"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}))


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
