"""Compare runs that were judged on the same queries: means, differences, and whether they could be chance.

Each argument is a run directory, or RUN:SYSTEM to name the row's system. All are compared with the first.

Examples:
  python -m experiments.compare runs/a runs/b runs/c
  python -m experiments.compare runs/a:bm25 runs/a runs/b --measures=ndcg@10,mrr@10
  python -m experiments.compare runs/a runs/b --system=hybrid --json
"""

import json
from collections.abc import Sequence
from pathlib import Path

from eval import comparison, results
from experiments import cli
from experiments.collected import TRAINED
from training.progress import Progress

_SAMPLES = 100_000  # of each randomization test


def main() -> None:
    """Entry point of `retrievax-compare`."""
    command = cli.Command(__doc__)
    runs = command.arguments("RUN", "run directories that have been evaluated, or RUN:SYSTEM.", least=2)
    system = command.string(
        "system",
        None,
        f"The system of runs that name none; else what each trained: {', '.join(TRAINED)}.",
    )
    names = command.string("measures", None, "Measures, joined by commas; by default all that are shared.")
    baseline = command.string("baseline", None, "The argument to compare the others with; else the first.")
    as_json = command.boolean("json", "Print one JSON object instead of a table.")

    def compare() -> None:
        with cli.expecting(OSError, ValueError):
            found = of_runs(runs.values, system.value, cli.split(names.value), baseline.value)
        if as_json.value:
            print(json.dumps(found.to_json(), indent=1))
            return
        print(caption(found))
        print(f"\n{found.table()}")

    command.run(compare)


def refuse_repeats(keys: Sequence[object], arguments: Sequence[str]) -> None:
    """Raises ValueError where two arguments have the same key; it names the second."""
    for i, (key, argument) in enumerate(zip(keys, arguments, strict=True)):
        if key in keys[:i]:
            raise ValueError(f"{argument} is given twice")


def of_runs(
    arguments: Sequence[str], system: str | None, names: Sequence[str] | None, baseline: str | None
) -> comparison.Comparison:
    """Compares runs from their results.json and per_query.json.

    Args:
      arguments: run directories, or RUN:SYSTEM.
      system: of those that name none; None for what each has trained.
      names: measures; None for all that every row has.
      baseline: one of `arguments`; None for the first.

    Raises:
      ValueError, FileNotFoundError: a run without results, different collections or queries.
    """
    refuse_repeats(
        [(Path(run).resolve(), of) for run, of in (_parse(a, system) for a in arguments)], arguments
    )
    if baseline is not None and baseline not in arguments:
        raise ValueError(f"--baseline is {baseline!r}; allowed: {', '.join(arguments)}")
    systems, first = {}, None
    for argument in arguments:
        run, of_system = _parse(argument, system)
        read = results.read(run)
        if of_system not in read.per_query:
            raise ValueError(f"{run} has no system {of_system!r}; it has {', '.join(read.per_query)}")
        first = (run, read) if first is None else first
        _check_collection(*first, run, read)
        systems[argument] = read.per_query[of_system]
    if names is None:
        columns = systems.values()
        names = [name for name in systems[arguments[0]] if all(name in column for column in columns)]
        if not names:
            raise ValueError(f"{', '.join(arguments)} have no measure in common")
    tests = (len(systems) - 1) * len(names)
    progress = Progress(tests, unit="test", title="randomization tests")
    try:
        return comparison.compare(
            systems, names, baseline or arguments[0], samples=_SAMPLES, progress=progress.update
        )
    finally:
        progress.close()


def caption(found: comparison.Comparison) -> str:
    """Returns what the brackets of the table say."""
    tests = "1 test" if found.tests == 1 else f"{found.tests} tests"
    return (
        f"{found.queries:,} queries; in brackets the difference from {found.baseline} and its p "
        f"(randomization test,\n{_SAMPLES:,} samples), corrected for the {tests} of this table (Holm, 1979)"
    )


def _parse(argument: str, system: str | None) -> tuple[str, str]:
    """RUN or RUN:SYSTEM; a folder whose name has a colon is a folder."""
    run, colon, named = argument.rpartition(":")
    if colon and not Path(argument).is_dir():
        return run, named
    return argument, _trained(argument) if system is None else system


def _trained(run: str) -> str:
    """The system that a run has trained."""
    there = results.read(run).per_query
    return next((name for name in TRAINED if name in there), TRAINED[0])


def _check_collection(first: str, first_read: results.Results, run: str, read: results.Results) -> None:
    ours, theirs = (of.meta.get("corpus_hash") for of in (first_read, read))
    if ours and theirs and ours != theirs:
        raise ValueError(
            f"{first} and {run} were judged on different collections (corpus {ours[:12]} and {theirs[:12]})"
        )


if __name__ == "__main__":
    main()
