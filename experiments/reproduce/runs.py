"""Training runs that a reproduction needs, each by `experiments.train` in a process of its own."""

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.cli import UsageError

_CONFIGS = Path(__file__).parents[2] / "configs"


def train(folder: Path, name: str, config: str, given: Mapping[str, Any]) -> Path:
    """Trains and evaluates a run, or goes on with it; returns its directory, which its settings name.

    Args:
      folder: of the runs.
      name: of this one.
      config: file under configs/, such as "dual_encoder/limit.py".
      given: the config's argument, by key.

    Raises:
      UsageError: the program that trains has failed; it has said why.
    """
    argument = ",".join(f"{key}={value}" for key, value in given.items())
    run_dir = folder / f"{name}-{hashlib.sha256(argument.encode()).hexdigest()[:8]}"
    if not (run_dir / "results.json").exists():
        command = ["-m", "experiments.train", f"--config={_CONFIGS / config}:{argument}"]
        print(f"training {run_dir.name}", flush=True)
        done = subprocess.run(
            [sys.executable, *command, f"--workdir={run_dir}"], stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            raise UsageError(f"python {' '.join(command)} ended with status {done.returncode}")
    return run_dir
