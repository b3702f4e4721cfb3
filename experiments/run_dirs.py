"""The run directory: one experiment's config and everything that comes of it."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from experiments.cli import UsageError
from experiments.machine import device_name
from training.build import locate
from training.files import flat, plain
from training.lock import exclusive

CONFIG_FILE = "config.json"
_BEFORE_A_CHECKPOINT = (
    CONFIG_FILE, "tokenizer.json", "tables", "metrics.jsonl", "tensorboard", "checkpoints", "init_from.json",
)  # fmt: skip
_REPORTED = ("retrievax", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "bm25s", "tokenizers")


class Family(Protocol):
    """What a config's `family` makes of a config and a run directory."""

    def train(self) -> Any:
        """Trains, from where the run directory's last checkpoint left off."""
        ...

    def evaluate(self) -> Any:
        """Evaluates the best checkpoint, writes the results and prints the table."""
        ...


def start(run_dir: str | Path, config: Mapping[str, Any]) -> Family:
    """Makes the run directory, or goes on in it if it was started with the same config.

    A run of another config that never came to a checkpoint is replaced.

    Raises:
      UsageError: it holds a run of another config; the fields that differ are named.
      SpecError, DataError: the config names what is not there. No run directory is left behind.
    """
    run_dir = Path(run_dir)
    config = plain(config)
    _claim(run_dir, config)
    try:
        return _open(run_dir, config)
    except Exception:
        if not _has_checkpoint(run_dir) and not (run_dir / "checkpoints").exists():  # nothing is there yet
            (run_dir / CONFIG_FILE).unlink()
            with contextlib.suppress(OSError):
                run_dir.rmdir()
        raise


def reopen(run_dir: str | Path) -> Family:
    """Opens a run that was started before. Raises UsageError if there is none in the folder."""
    return _open(Path(run_dir), load_config(run_dir))


def _open(run_dir: Path, config: Mapping[str, Any]) -> Family:
    return locate(config.get("family"), "config.family")(config, run_dir)


def _claim(run_dir: Path, config: dict[str, Any]) -> None:
    file = run_dir / CONFIG_FILE
    if file.exists():
        before = flat(load_config(run_dir))
        now = flat(config)
        differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if differing and not _has_checkpoint(run_dir):
            with exclusive(run_dir):
                for name in _BEFORE_A_CHECKPOINT:  # all that a run makes before it is worth keeping
                    path = run_dir / name
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        elif differing:
            shown = ", ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in differing[:3])
            raise UsageError(
                f"--workdir: {run_dir} holds a run of another config ({shown}"
                f"{', ...' if len(differing) > 3 else ''}); name another folder or remove it"
            )
        else:
            return
    elif run_dir.exists() and any(run_dir.iterdir()):
        raise UsageError(f"--workdir: {run_dir} is not empty and has no {CONFIG_FILE}; name another folder")
    run_dir.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(config, indent=1) + "\n")
    partial.replace(file)


def _has_checkpoint(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob("*/[0-9]*"))


def load_config(run_dir: str | Path) -> dict[str, Any]:
    """Returns a run's config. Raises UsageError if there is no run in the folder."""
    file = Path(run_dir) / CONFIG_FILE
    if not file.is_file():
        raise UsageError(
            f"no run in {run_dir}: {file} does not exist; train one with python -m experiments.train"
        )
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UsageError(f"{file} is damaged: {error}") from None


def meta(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what results.json says of a run: config hash, seed, versions and device."""
    text = json.dumps(plain(config), sort_keys=True)
    return {
        "config_hash": hashlib.sha256(text.encode()).hexdigest()[:16],
        "seed": config.get("seed"),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _REPORTED},
        "device": device_name(),
    }
