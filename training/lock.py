"""One process at a time: two that train in one run directory would delete each other's checkpoints."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import jax

_FILE = ".lock"


class LockedError(RuntimeError):
    """Another process works in the run directory."""


@contextlib.contextmanager
def exclusive(run_dir: str | Path) -> Iterator[None]:
    """While entered, no other program can enter the same run directory; a kill releases it.

    The processes of one training count as one program: the first of them holds the lock.

    Raises:
      LockedError: another program is in it.
    """
    if jax.process_index() != 0:
        yield
        return
    file = Path(run_dir) / _FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"another process is at work in {run_dir}; wait for it, or stop it") from None
        yield
