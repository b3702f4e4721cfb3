"""What every program's command line shares: an experiment config, its overrides, and one-line errors."""

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from corpora.tables import DataError
from training.build import SpecError
from training.checkpoints import CheckpointError
from training.interrupts import Interrupted
from training.loop import NonFiniteLoss


class UsageError(ValueError):
    """The command line is wrong; the message says what is valid."""


# What a person can mend: reported in one line, without a traceback.
_EXPECTED = (UsageError, SpecError, DataError, CheckpointError, NonFiniteLoss)


def define_config(default: str | None) -> flags.FlagHolder:
    """Defines `--config=file.py[:argument]` and its overrides `--config.field=value`."""
    return config_flags.DEFINE_config_file(
        "config",
        default,
        "Experiment config, FILE.py or FILE.py:ARGUMENT; any field of it can be overridden, as in "
        "--config.schedule.total_steps=100.",
        lock_config=True,
    )


def run(main: Callable[[], None], argv: Sequence[str] | None = None) -> None:
    """Parses the command line and calls `main`, turning expected errors into one line and exit status 2.

    Exits with 128 + the signal's number when the run was stopped by a signal.
    """
    argv = list(sys.argv if argv is None else argv)
    try:
        rest = _parse(argv)
        if len(rest) > 1:
            raise UsageError(f"unexpected argument {rest[1]!r}; flags are given as --name=value")
        main()
    except Interrupted as stop:
        print(f"{Path(argv[0]).name}: {stop}", file=sys.stderr)
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        sys.exit(130)
    except _EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    for argument in argv[1:]:
        if match := re.match(r"--?config=(.*?\.py)(:.*)?$", argument):
            check_config_file(match[1])
    try:
        return app.parse_flags_with_usage(argv) if _wants_help(argv) else flags.FLAGS(argv)
    except flags.Error as error:
        raise UsageError(" ".join(str(error).split())) from None
    except AttributeError as error:
        raise UsageError(_unknown_field(argv, error)) from None


def check_config_file(path: str) -> None:
    """Raises UsageError naming the nearest config files if there is none at `path`."""
    if not Path(path).is_file():
        there = sorted(str(file) for file in Path("configs").rglob("*.py") if file.name != "__init__.py")
        near = difflib.get_close_matches(path, there, n=2, cutoff=0.4) or there[:5]
        raise UsageError(
            f"--config: no such file: {path}; {f'did you mean {_or(near)}?' if near else 'none here'}"
        )


def _wants_help(argv: Sequence[str]) -> bool:
    return any(argument.lstrip("-") in ("help", "helpfull", "helpshort", "helpxml") for argument in argv[1:])


def _unknown_field(argv: Sequence[str], error: AttributeError) -> str:
    # ml_collections names the last part of the path only; find the whole of it on the command line.
    match = re.search(r"""Did you mean \\?["'](\w+)\\?["'] instead of \\?["'](\w+)""", str(error))
    name = match[2] if match else str(error).strip("'\"\\").split("\\n")[0].strip("'\"\\")
    fields = [
        a.split("=")[0].lstrip("-") for a in argv if re.match(rf"--?config\..*\b{re.escape(name)}\b", a)
    ]
    where = f"--{fields[0]}" if fields else repr(name)
    return f"{where}: the config has no field {name!r}{f'; did you mean {match[1]!r}?' if match else ''}"


def _or(names: Sequence[str]) -> str:
    return " or ".join(names)
