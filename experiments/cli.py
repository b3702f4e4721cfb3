"""What every program's command line shares: an experiment config, its overrides, and one-line errors."""

import difflib
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
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


class Command:
    """One program's flags, and how it is run.

    Args:
      doc: the program's docstring; `--help` prints it above the flags.
    """

    def __init__(self, doc: str):
        self._doc, self._flags = doc, flags.FlagValues()
        self._default_config: str | None = None

    def config(self, default: str) -> flags.FlagHolder:
        """Defines `--config=FILE.py[:ARGUMENT]` and its overrides `--config.field=value`."""
        self._default_config = default
        # Given as a default, it would be what overrides of another file's fields are checked against.
        return config_flags.DEFINE_config_file(
            "config",
            None,
            "The experiment, FILE.py or FILE.py:ARGUMENT; any field of it can be overridden, as in "
            f"--config.schedule.total_steps=100. By default {default}.",
            lock_config=True,
            flag_values=self._flags,
        )

    def string(self, name: str, default: str | None, text: str) -> flags.FlagHolder:
        return flags.DEFINE_string(name, default, text, flag_values=self._flags)

    def integer(self, name: str, default: int, text: str, *, lower_bound: int) -> flags.FlagHolder:
        return flags.DEFINE_integer(name, default, text, lower_bound=lower_bound, flag_values=self._flags)

    def boolean(self, name: str, text: str) -> flags.FlagHolder:
        return flags.DEFINE_bool(name, False, text, flag_values=self._flags)

    def choice(self, name: str, default: str, choices: Sequence[str], text: str) -> flags.FlagHolder:
        return flags.DEFINE_enum(name, default, choices, text, flag_values=self._flags)

    def run(self, main: Callable[[], None]) -> None:
        """Parses the command line and calls `main`, turning expected errors into one line and status 2.

        Exits with 128 + the signal's number where a signal stopped the run.
        """
        if any(argument.lstrip("-") in ("help", "helpfull", "helpshort") for argument in sys.argv[1:]):
            print(f"{self._doc.strip()}\n\nFlags:\n{self._flags.get_help()}")
            return
        try:
            rest = self._parse()
            if len(rest) > 1:
                raise UsageError(f"unexpected argument {rest[1]!r}; flags are given as --name=value")
            main()
        except Interrupted as stop:
            print(f"{stop}", file=sys.stderr)
            sys.exit(128 + stop.signum)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except _EXPECTED as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    def _parse(self) -> list[str]:
        named = any(re.match(r"--?config(=|$)", argument) for argument in sys.argv[1:])
        if self._default_config and not named:
            sys.argv.insert(1, f"--config={self._default_config}")
        for argument in sys.argv[1:]:
            if match := re.match(r"--?config=(.*?\.py)(:.*)?$", argument):
                check_config_file(match[1])
        try:
            return self._flags(sys.argv)
        except flags.Error as error:
            raise UsageError(" ".join(str(error).split())) from None
        except AttributeError as error:
            raise UsageError(_unknown_field(sys.argv, error)) from None


def check_config_file(path: str) -> None:
    """Raises UsageError naming the nearest config files if there is none at `path`."""
    if not Path(path).is_file():
        there = sorted(str(file) for file in Path("configs").rglob("*.py") if file.name != "__init__.py")
        near = difflib.get_close_matches(path, there, n=2, cutoff=0.4) or there[:5]
        raise UsageError(
            f"--config: no such file: {path}; {f'did you mean {_or(near)}?' if near else 'none here'}"
        )


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
