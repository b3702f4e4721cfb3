"""What every benchmark shares: the command line, fair timing beside a peer, and the line it reports."""

import argparse
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from types import ModuleType

from experiments.machine import device_name

# Thread pools of other libraries go on spinning for a moment after a call and would slow the next one.
_PAUSE_S = 0.01


class BenchmarkError(RuntimeError):
    """The benchmark cannot run here, or its results disagree with the peer's."""


def parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """Returns a parser with `--json` and an example below the help text."""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--json", action="store_true", help="print the whole record as JSON, in the last line")
    return made


def import_peers(*names: str) -> list[ModuleType]:
    """Imports the peers, or raises a BenchmarkError that says how to install them."""
    found, missing = [], []
    for name in names:
        try:
            found.append(importlib.import_module(name))
        except ModuleNotFoundError:
            missing.append(name)
    if missing:
        raise BenchmarkError(
            f"not installed: {', '.join(missing)}. The peers come with the `bench` extra: run `make bench`, "
            "or pip install -c constraints.txt -e '.[bench]'"
        )
    return found


def interleaved_medians(
    callables: Mapping[str, Callable[[int], object]],
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Times callables in turn and returns their median seconds.

    Every round runs each callable once, so that whatever else the machine does meets all alike, and
    starts one further on than the last, so that none always follows the same neighbor.

    Args:
      callables: by name, a function of the round's number (so that inputs may vary) that returns
        when its work is done.
      rounds: timed runs of each, 1 or more.
      warmup: runs of each before, untimed.
      clock: returns seconds.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; at least 1 is needed")
    names = list(callables)
    for name in names:
        for number in range(warmup):
            callables[name](number)
    seconds = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            time.sleep(_PAUSE_S)
            start = clock()
            callables[name](number)
            seconds[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def versions(*distributions: str) -> dict[str, str]:
    """Versions of the named distributions and of Python."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in distributions}


def record(*, name: str, ours: float, peer: float, better: str, unit: str, **details) -> dict:
    """Makes a benchmark's record: its fields, `ratio` (ours / peer), the device, and details.

    Args:
      name: of the benchmark.
      ours, peer: measured in `unit`.
      better: "higher" or "lower".
      unit: such as "queries/s".
      **details: what else a reader needs, JSON-serializable.
    """
    if better not in ("higher", "lower"):
        raise ValueError(f"better is {better!r}; allowed: 'higher', 'lower'")
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "ratio": ours / peer,
        "better": better,
        "unit": unit,
        "device": device_name(),
        **details,
    }


def report(made: Mapping, lines: Sequence[str], *, as_json: bool) -> None:
    """Prints the readable lines, and with `as_json` the record as the last line."""
    for line in lines:
        print(line)
    if as_json:
        print(json.dumps(made), flush=True)
