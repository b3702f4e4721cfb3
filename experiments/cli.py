"""What every program's command line shares: an experiment config, its overrides, and one-line errors."""

import contextlib
import difflib
import itertools
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from backbones.pretrained.folder import PretrainedError
from corpora.tables import DataError
from moe.leakage import DependenceError
from training import distributed
from training.build import SpecError
from training.checkpoints import CheckpointError
from training.distributed import ProcessError
from training.interrupts import Interrupted
from training.lock import LockedError
from training.loop import NonFiniteLoss
from training.memory import keep_freed_memory
from training.profiling import ProfileError


class UsageError(ValueError):
    """The command line is wrong; the message says what is valid."""


# What a person can mend: reported in one line, without a traceback.
_EXPECTED = (
    UsageError, SpecError, DataError, CheckpointError, LockedError, NonFiniteLoss, ProcessError, ProfileError,
    DependenceError, PretrainedError,
)  # fmt: skip


@contextlib.contextmanager
def expecting(*kinds: type[Exception]) -> Iterator[None]:
    """Reports errors of these kinds as a wrong command line: for files that the user has named."""
    try:
        yield
    except kinds as error:
        named = isinstance(error, OSError) and error.filename and error.strerror
        raise UsageError(f"{error.filename}: {error.strerror}" if named else str(error)) from error


class Arguments:
    """What a command line gives without a flag, in `values` once it is parsed."""

    def __init__(self, name: str, text: str, least: int):
        self._name, self._text, self._least = name, text, least
        self.values: list[str] = []

    def help(self) -> str:
        return f"Arguments:\n  {self._name}: {self._text}"

    def take(self, values: list[str]) -> None:
        if len(values) < self._least:
            raise UsageError(
                f"{len(values)} {self._name} given; at least {self._least} "
                f"{'is' if self._least == 1 else 'are'} needed (see --help)"
            )
        self.values = values


class Command:
    """One program's flags, and how it is run.

    Args:
      doc: the program's docstring; `--help` prints it above the flags.
    """

    def __init__(self, doc: str):
        self._doc, self._flags = doc, flags.FlagValues()
        self._takes_config, self._default_config = False, None
        self._arguments: Arguments | None = None

    def config(self, default: str | None) -> flags.FlagHolder:
        """Defines `--config=FILE.py[:ARGUMENT]` and its overrides `--config.field=value`; with a default of
        None it may be left out, and is None then."""
        self._takes_config, self._default_config = True, default
        # Given as a default, it would be what overrides of another file's fields are checked against.
        return config_flags.DEFINE_config_file(
            "config",
            None,
            "The experiment, FILE.py or FILE.py:ARGUMENT; any field of it can be overridden, as in "
            f"--config.batch.batch_size=256. By default {default or 'none'}.",
            lock_config=True,
            flag_values=self._flags,
        )

    def string(self, name: str, default: str | None, text: str) -> flags.FlagHolder:
        return flags.DEFINE_string(name, default, text, flag_values=self._flags)

    def arguments(self, name: str, text: str, *, least: int) -> "Arguments":
        """Takes arguments without a flag, at least so many; `name` is what `--help` and errors call one."""
        self._arguments = Arguments(name, text, least)
        return self._arguments

    def number(
        self, name: str, default: float | None, text: str, *, lower_bound: float, upper_bound: float
    ) -> flags.FlagHolder:
        return flags.DEFINE_float(name, default, text, lower_bound, upper_bound, flag_values=self._flags)

    def integer(self, name: str, default: int | None, text: str, *, lower_bound: int) -> flags.FlagHolder:
        return flags.DEFINE_integer(name, default, text, lower_bound=lower_bound, flag_values=self._flags)

    def boolean(self, name: str, text: str) -> flags.FlagHolder:
        return flags.DEFINE_bool(name, False, text, flag_values=self._flags)

    def choice(self, name: str, default: str | None, choices: Sequence[str], text: str) -> flags.FlagHolder:
        return flags.DEFINE_enum(name, default, choices, text, flag_values=self._flags)

    def run(self, main: Callable[[], None]) -> None:
        """Parses the command line and calls `main`, turning expected errors into one line and status 2.

        Exits with 128 + the signal's number where a signal stopped the run. With several processes an error
        of one ends the others too: it exits without waiting for them, see training.distributed.leave.
        """
        own = itertools.takewhile(lambda argument: argument != "--", sys.argv[1:])
        if any(re.fullmatch("--?help(full|short)?", argument) for argument in own):
            given = "" if self._arguments is None else f"{self._arguments.help()}\n\n"
            print(f"{self._doc.strip()}\n\n{given}Flags:\n{self._flags.get_help()}")
            return
        try:
            rest = self._parse()[1:]
            if self._arguments is not None:
                self._arguments.take(rest)
            elif rest:
                raise UsageError(f"unexpected argument {rest[0]!r}; flags are given as --name=value")
            keep_freed_memory()
            main()
        except Interrupted as stop:  # all processes at the same step
            print(f"{stop}", file=sys.stderr)
            sys.exit(128 + stop.signum)
        except KeyboardInterrupt:
            distributed.leave(128 + signal.SIGINT)
        except Exception as error:
            follows = distributed.followed(error)
            if follows is not None:
                print(f"error: {follows}", file=sys.stderr)
                distributed.leave(distributed.FOLLOWED)
            if isinstance(error, _EXPECTED):
                print(f"error: {error}", file=sys.stderr)
                distributed.leave(2)
            if isinstance(error, OSError):  # such as a full disk
                place = f"{error.filename}: " if error.filename else ""
                print(f"error: {place}{error.strerror or error}", file=sys.stderr)
                distributed.leave(2)
            if not distributed.several():
                raise
            traceback.print_exc()
            distributed.leave(1)

    def _parse(self) -> list[str]:
        if self._takes_config:
            self._name_config()
        try:
            return self._flags(sys.argv)
        except flags.Error as error:
            raise UsageError(_last_clause(str(error))) from None
        except (AttributeError, KeyError) as error:
            raise UsageError(_unknown_field(sys.argv, error)) from None

    def _name_config(self) -> None:
        """Makes sure that the command line names a config file, where one is needed, and that it is there."""
        if "--config" in sys.argv[:-1]:  # --config FILE becomes --config=FILE
            at = sys.argv.index("--config")
            sys.argv[at : at + 2] = [f"--config={sys.argv[at + 1]}"]
        named = any(argument.startswith("--config=") for argument in sys.argv)
        if not named and self._default_config is not None:
            sys.argv.insert(1, f"--config={self._default_config}")
        for at, argument in enumerate(sys.argv):
            if argument.startswith("--config="):
                path, colon, rest = argument.removeprefix("--config=").partition(":")
                sys.argv[at] = f"--config={find_config_file(path)}{colon}{rest}"


def split(text: str | None) -> list[str] | None:
    """Returns the distinct parts of a flag's value, joined by commas; None where it was not given."""
    return None if text is None else list(dict.fromkeys(part.strip() for part in text.split(",")))


def find_config_file(path: str) -> Path:
    """Returns the config file at a path, which may also be given from the project's folder.

    Raises:
      UsageError: there is none, or it has no `get_config`; the nearest ones are named.
    """
    root = Path(__file__).parents[1]
    file = next((f for f in (Path(path), root / path) if f.is_file()), None)
    if file is not None and "def get_config(" in file.read_text(encoding="utf-8"):
        return file
    names = {
        str(there.relative_to(folder))
        for folder in (Path(), root)
        for there in (folder / "configs").rglob("*.py")
        if "def get_config(" in there.read_text(encoding="utf-8")
    }
    near = difflib.get_close_matches(path, sorted(names), n=2, cutoff=0.4) or sorted(names)
    problem = "no such file" if file is None else "no get_config in"
    raise UsageError(f"--config: {problem}: {path}; did you mean {' or '.join(near)}?")


def _unknown_field(argv: Sequence[str], error: AttributeError | KeyError) -> str:
    # ml_collections names the last part of the path only; find the whole of it on the command line.
    match = re.search(r"""Did you mean \\?["'](\w+)\\?["'] instead of \\?["'](\w+)""", str(error))
    name = match[2] if match else str(error).strip("'\"\\").split("\\n")[0].strip("'\"\\")
    fields = [
        a.split("=")[0].lstrip("-") for a in argv if re.match(rf"--?config\..*\b{re.escape(name)}\b", a)
    ]
    where = f"--{fields[0]}" if fields else repr(name)
    return f"{where}: the config has no field {name!r}{f'; did you mean {match[1]!r}?' if match else ''}"


def _last_clause(text: str) -> str:
    """An error of a config file comes with a traceback inside its message; the last line says what it is."""
    if "Traceback" not in text:
        return " ".join(text.split())
    pattern = re.compile(r"\s*\w[\w.]*(Error|Exception): ")
    lines = [line for line in text.splitlines() if pattern.match(line)]
    return "--config: " + (lines[-1].split(": ", 1)[1] if lines else " ".join(text.split()))
