"""Average runs over sub-collections, each counting alike: the macro mean of every system and measure.

BEIR reports CQADupStack so: the mean over its twelve sub-forums, whatever their numbers of queries.

Examples:
  python -m experiments.average runs/cqadupstack/*
  python -m experiments.average runs/cqadupstack/* --measures=ndcg@10 --output=results/cqadupstack.md
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval import comparison, results, trec
from experiments import cli, compare

MEAN = "macro mean"

Means = dict[str, dict[str, dict[str, float]]]  # run (or MEAN) -> system -> measure -> mean


def main() -> None:
    """Entry point of `retrievax-average`."""
    command = cli.Command(__doc__)
    runs = command.arguments(
        "RUN", "run directories that have been evaluated, one a sub-collection.", least=2
    )
    names = command.string("measures", None, "Measures, joined by commas; by default all that are shared.")
    output = command.string("output", None, "A file to write the tables to as well, in markdown.")
    as_json = command.boolean("json", "Print one JSON object instead of tables.")

    def average() -> None:
        with cli.expecting(OSError, ValueError):
            compare.refuse_repeats([Path(run).resolve() for run in runs.values], runs.values)
            read = {run: results.read(run) for run in runs.values}
            found = macro_means(read, cli.split(names.value))
            text = tables(found)
            if output.value is not None:
                with trec.replacing(output.value) as file:
                    file.write(text + "\n")
        every = dict.fromkeys(system for run in read.values() for system in run.means)
        left_out = [system for system in every if system not in found[MEAN]]
        if left_out:
            print(f"left out, as not every run has them: {', '.join(left_out)}", file=sys.stderr)
        print(json.dumps(found, indent=1) if as_json.value else text)

    command.run(average)


def macro_means(runs: Mapping[str, results.Results], names: Sequence[str] | None = None) -> Means:
    """The means of each run, and under `MEAN` their mean over the runs, each run counting alike.

    Args:
      runs: name -> results, each of another collection.
      names: measures; None for all that every run has of every system that they share.

    Returns:
      of the systems that every run has, in the first one's order.

    Raises:
      ValueError: two runs of one collection, no system in common, or a measure that a run lacks.
    """
    _check_distinct(runs)
    first = next(iter(runs.values()))
    systems = [name for name in first.means if all(name in run.means for run in runs.values())]
    if not systems:
        having = "; ".join(f"{name} has {', '.join(run.means)}" for name, run in runs.items())
        raise ValueError(f"the runs have no system in common: {having}")
    columns = {(name, system): run.means[system] for name, run in runs.items() for system in systems}
    if names is None:
        names = [name for name in first.means[systems[0]] if all(name in has for has in columns.values())]
    for (run, system), has in columns.items():
        comparison.check_measures(f"{system} of {run}", has, names)
        if not names:
            raise ValueError(
                f"{system} of {run} has no measure that all the others have; it has {', '.join(has)}"
            )
    found = {
        run: {system: {name: columns[run, system][name] for name in names} for system in systems}
        for run in runs
    }
    found[MEAN] = {
        system: {name: statistics.fmean(found[run][system][name] for run in runs) for name in names}
        for system in systems
    }
    return found


def tables(found: Means) -> str:
    """Returns a table a measure: a row a run and one for their mean, a column a system."""
    systems = list(found[MEAN])
    parts = []
    for name in next(iter(found[MEAN].values())):
        rows = [[run, *(f"{of[system][name]:.4f}" for system in systems)] for run, of in found.items()]
        parts.append(results.markdown_table([name, *systems], rows))
    return "\n\n".join(parts)


def _check_distinct(runs: Mapping[str, results.Results]) -> None:
    judged: dict[tuple, str] = {}
    for name, run in runs.items():
        columns = next(iter(run.per_query.values()), {})
        queries = frozenset(next(iter(columns.values()), {}))
        key = run.meta.get("corpus_hash"), queries
        if key in judged:
            raise ValueError(
                f"{judged[key]} and {name} were judged on the same {len(queries):,} queries of one "
                "collection, which would count twice"
            )
        judged[key] = name


if __name__ == "__main__":
    main()
