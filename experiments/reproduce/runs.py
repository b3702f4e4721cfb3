"""Training runs that a reproduction needs, each by `experiments.train` in a process of its own."""

import hashlib
import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.cli import UsageError

_CONFIGS = Path(__file__).parents[2] / "configs"


def train(
    folder: Path, name: str, config: str, given: Mapping[str, Any], changed: Mapping[str, Any] | None = None
) -> Path:
    """Trains and evaluates a run, or goes on with it; returns its directory, which its settings name.

    Args:
      folder: of the runs.
      name: of this one.
      config: file under configs/, such as "dual_encoder/limit.py".
      given: the config's argument, by key.
      changed: fields of the config to override, by their dotted paths.

    Raises:
      UsageError: the program that trains has failed; it has said why.
    """
    changed = changed or {}
    run_dir = directory(folder, name, given, changed)
    if not is_done(run_dir):
        print(f"training {run_dir.name}", flush=True)
        overrides = [f"--config.{field}={value}" for field, value in changed.items()]
        program(
            "train", f"--config={_CONFIGS / config}:{_argument(given)}", f"--workdir={run_dir}", *overrides
        )
    return run_dir


def directory(
    folder: Path, name: str, given: Mapping[str, Any], changed: Mapping[str, Any] | None = None
) -> Path:
    """Returns where `train` has a run."""
    told = _argument(given) + (f" {_argument(changed)}" if changed else "")
    return folder / f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def is_done(run_dir: Path) -> bool:
    """Whether a run is trained and evaluated."""
    return (run_dir / "results.json").exists()


def load(config: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config that `train` would train, as a plain dict.

    Args:
      config: file under configs/.
      given: its argument, by key.
    """
    spec = importlib.util.spec_from_file_location("config_file", _CONFIGS / config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(_argument(given)).to_dict()


def program(name: str, *arguments: str) -> None:
    """Runs one of the package's programs, without what it prints, in a process of its own.

    Raises:
      UsageError: it has failed; it has said why.
    """
    command = ["-m", f"experiments.{name}", *arguments]
    done = subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UsageError(f"python {' '.join(command)} ended with status {done.returncode}")


def _argument(given: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in given.items())
