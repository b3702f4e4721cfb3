"""Look after the checkpoints of runs: list what is there, verify it, or prune what is not needed.

list     kind, step, size and time of every checkpoint, and the value of the best one
verify   reads every file and compares it with the digest it was written with; status 1 where one differs
prune    deletes all but the newest --keep and the best one, those that are damaged, and tables that no
         checkpoint names; --dry_run only says what would go

Examples:
  python -m experiments.checkpoints list runs/quickstart
  python -m experiments.checkpoints verify runs/*
  python -m experiments.checkpoints prune runs/quickstart --keep=1 --dry_run
"""

import datetime
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from eval.results import markdown_table
from experiments import cli
from training import checkpoints
from training.checkpoints import BEST, LATEST
from training.lock import exclusive
from training.tables import unused

_ACTIONS = ("list", "verify", "prune")


def main() -> None:
    """Entry point of `retrievax-checkpoints`."""
    command = cli.Command(__doc__)
    words = command.arguments(
        "ACTION RUN ...", f"one of {', '.join(_ACTIONS)}, and run directories.", least=2
    )
    keep = command.integer("keep", 1, "How many of the latest checkpoints `prune` keeps.", lower_bound=1)
    dry_run = command.boolean("dry_run", "With `prune`: delete nothing, only say what would go.")

    def run() -> None:
        action, *run_dirs = words.values
        if action not in _ACTIONS:
            raise cli.UsageError(f"the action is {action!r}; allowed: {', '.join(_ACTIONS)}")
        folders = [_checkpoints_of(run_dir) for run_dir in run_dirs]
        if action == "list":
            print(markdown_table(["checkpoint", "size", "written", ""], list(_rows(folders))))
        elif action == "verify":
            damaged = [folder for folder in folders if not _verify(folder)]
            sys.exit(1 if damaged else 0)
        elif action == "prune":
            for folder in folders:
                with exclusive(folder.parent):
                    _prune(folder, keep.value, dry_run.value)

    command.run(run)


def _checkpoints_of(run_dir: str) -> Path:
    folder = Path(run_dir) / "checkpoints"
    if not folder.is_dir():
        raise cli.UsageError(f"{run_dir} holds no run with checkpoints: there is no {folder}")
    return folder


def _found(folder: Path) -> list[Path]:
    """Every checkpoint of a run, the best first and then the latest, newest first."""
    return [
        folder / kind / str(step)
        for kind in (BEST, LATEST)
        for step in sorted(checkpoints.steps(folder / kind), reverse=True)
    ]


def _rows(folders: list[Path]) -> Iterator[list[str]]:
    for folder in folders:
        record = checkpoints.best_record(folder)
        for path in _found(folder):
            best = record is not None and path == folder / BEST / str(record["step"])
            written = datetime.datetime.fromtimestamp(path.stat().st_mtime)
            note = f"value {record['value']:.4f}" if best else ""
            yield [str(path), _megabytes(checkpoints.size(path)), f"{written:%Y-%m-%d %H:%M:%S}", note]


def _verify(folder: Path) -> bool:
    sound = True
    record = checkpoints.best_record(folder)
    if record is not None and not (folder / BEST / str(record["step"])).is_dir():
        print(f"{folder / BEST / str(record['step'])}: it is on record as the best, and is not there")
        sound = False
    for path in _found(folder):
        problems = list(checkpoints.damage(path))
        sound &= not problems
        print(f"{path}: {'; '.join(problems) or 'sound'}", flush=True)
    return sound


def _prune(folder: Path, keep: int, dry_run: bool) -> None:
    sound = [path for path in _found(folder) if not next(checkpoints.damage(path), None)]
    kept = [path for path in sound if path.parent.name == LATEST][:keep]
    if not kept and checkpoints.steps(folder / LATEST):
        raise cli.UsageError(f"no checkpoint in {folder / LATEST} is sound; nothing is deleted")
    record = checkpoints.best_record(folder)
    if record is not None:
        kept.append(folder / BEST / str(record["step"]))
    gone = [path for path in _found(folder) if path not in kept]
    gone += [path for kind in (BEST, LATEST) for path in (folder / kind).glob(f"*{checkpoints.DAMAGED}")]
    gone += unused(folder.parent, [checkpoints.position(path) for path in kept if path.parent.name == LATEST])
    for path in gone:
        size = checkpoints.size(path) if path.is_dir() else path.stat().st_size
        print(f"{'would delete' if dry_run else 'deleted'} {path} ({_megabytes(size)})")
        if dry_run:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not gone:
        print(f"{folder}: nothing to delete")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"


if __name__ == "__main__":
    main()
