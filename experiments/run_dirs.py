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

import jax

from experiments.cli import UsageError
from experiments.machine import device_name
from training import distributed
from training.build import locate
from training.files import flat, plain
from training.lock import exclusive
from training.profiling import Profile

CONFIG_FILE = "config.json"
_BEFORE_A_CHECKPOINT = (
    CONFIG_FILE, "tokenizer.json", "tables", "metrics.jsonl", "tensorboard", "checkpoints", "init_from.json",
    "profile", "docids.npz", "docids.json", "indexing.json",
)  # fmt: skip
_REPORTED = ("retrievax", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "bm25s", "tokenizers")


class Family(Protocol):
    """What a config's `family` makes of a config and a run directory."""

    def train(self, *, profile: Profile | None = None) -> Any:
        """Trains, from where the run directory's last checkpoint left off; some steps may be traced."""
        ...

    def evaluate(self) -> Any:
        """Evaluates the best checkpoint, writes the results and prints the table."""
        ...


def start(run_dir: str | Path, config: Mapping[str, Any]) -> Family:
    """Makes the run directory, or goes on in it if it was started with the same config.

    A run of another config that never came to a checkpoint is replaced. Of several processes the first one
    does this, and the others see to it that they have found the same.

    Raises:
      UsageError: it holds a run of another config; the fields that differ are named. Or it is on a disk that
        this process does not share with the first.
      SpecError, DataError: the config names what is not there. One process leaves no run directory behind.
      ProcessError: the first process could not do it.
    """
    run_dir = Path(run_dir)
    config = plain(config)
    with distributed.leader_first(f"opening {run_dir}"):
        if distributed.is_leader():
            _claim(run_dir, config)
        else:
            _check_shared(run_dir, config)
    try:
        return _open(run_dir, config)
    except Exception:
        nothing_there = not _has_checkpoint(run_dir) and not (run_dir / "checkpoints").exists()
        if nothing_there and not distributed.several():  # of which one may be still reading what is there
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
        changed = differing(load_config(run_dir), config)
        if changed and not _has_checkpoint(run_dir):
            with exclusive(run_dir):
                for name in _BEFORE_A_CHECKPOINT:  # all that a run makes before it is worth keeping
                    path = run_dir / name
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        elif changed:
            raise UsageError(
                f"--workdir: {run_dir} holds a run of another config ({shown(changed)}); name another "
                "folder or remove it"
            )
        else:
            return
    elif run_dir.exists() and any(run_dir.iterdir()):
        raise UsageError(f"--workdir: {run_dir} is not empty and has no {CONFIG_FILE}; name another folder")
    run_dir.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(config, indent=1) + "\n")
    partial.replace(file)


def _check_shared(run_dir: Path, config: dict[str, Any]) -> None:
    """Raises UsageError where this process does not see what the first one has just written."""
    number = jax.process_index()
    if not (run_dir / CONFIG_FILE).exists():
        raise UsageError(
            f"--workdir: process {number} does not see {run_dir}, which process 0 has made; it must be on a "
            "file system that all hosts share"
        )
    changed = differing(load_config(run_dir), config)
    if changed:
        raise UsageError(
            f"process {number} was started with another config than process 0 ({shown(changed)})"
        )


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the fields that two configs differ in, each as "field: before -> now"."""
    before, now = flat(before), flat(now)
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return [f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys]


def shown(changed: list[str]) -> str:
    """Returns the first of what `differing` found, for an error."""
    return ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")


def _has_checkpoint(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob("*/[0-9]*"))


def load_config(run_dir: str | Path) -> dict[str, Any]:
    """Returns a run's config. Raises UsageError if there is no run in the folder, or it is damaged."""
    file = Path(run_dir) / CONFIG_FILE
    if not file.is_file():
        raise UsageError(
            f"no run in {run_dir}: {file} does not exist; train one with python -m experiments.train"
        )
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise UsageError(f"{file} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise UsageError(f"{file} is damaged: it holds {config!r:.20}; expected the fields of a config")
    return config


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
