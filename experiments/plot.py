"""Plot runs: a measure over any field with a band over seeds, or what it costs as a Pareto front.

The band is Student's 95% interval of the mean over seeds; a single seed has none. RUN is a run directory or a
folder of them, such as a sweep's. Everything is read from config.json, results.json and per_query.json. The
x of a front is any number of a config or of results.json's `meta`, less being better; `time` is the seconds
that the training steps took.

Examples:
  python -m experiments.plot runs/sweeps/fairytaleqa --x=neighbors --y=ndcg@10 --lines=token_dropout \\
      --output=plot.png
  python -m experiments.plot runs/* --x=time --y=ndcg@10 --pareto --output=cost.pdf
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import plots, seeds
from experiments import cli, collected, fields
from training.files import flat

LEVEL = 0.95
_NAMED = {"time": "meta.wall_seconds.training"}
_KINDS = (".png", ".pdf")


def main() -> None:
    """Entry point of `retrievax-plot`."""
    command = cli.Command(__doc__)
    runs = command.arguments("RUN", "run directories that have been evaluated, or folders of them.", least=1)
    x = command.string("x", None, "The field on x; with --pareto any number of config or meta.")
    y = command.string("y", "ndcg@10", "The measure on y.")
    lines_of = command.string("lines", None, "Fields that make the lines, or the colors, joined by commas.")
    system = command.string("system", None, "Systems, joined by commas; by default what the runs trained.")
    where = command.string("where", None, "Only runs with these values, FIELD=VALUE,...")
    over = command.string(
        "over", "seed", "Fields that the runs of one point may differ in, joined by commas."
    )
    front = command.boolean("pareto", "Draw the points that no other beats in both x and y.")
    output = command.string("output", "plot.png", "The file to write, .png or .pdf.")

    def plot() -> None:
        if not x.value:
            raise cli.UsageError("--x is not given (see --help)")
        with cli.expecting(OSError, ValueError):
            found, left_out = collected.read(runs.values)
            draw = pareto if front.value else lines
            draw(
                output.value,
                found,
                x=x.value,
                y=y.value,
                by=cli.split(lines_of.value) or (),
                systems=cli.split(system.value),
                where=where.value or "",
                over=cli.split(over.value),
            )
        for reason in left_out:
            print(f"left out: {reason}", file=sys.stderr)
        print(f"written: {output.value}")

    command.run(plot)


def lines(
    output: str | Path,
    runs: Sequence[collected.Run],
    *,
    x: str,
    y: str,
    by: Sequence[str] = (),
    systems: Sequence[str] | None = None,
    where: str = "",
    over: Sequence[str] = ("seed",),
) -> None:
    """Draws a measure over a field, a line for every value of other fields.

    Args:
      output: a .png or .pdf file.
      runs: see collected.read.
      x: a field of the config, by its path or the end of it.
      y: a measure.
      by: fields, or `system`, whose values make the lines.
      systems, where, over: as for experiments.table.make.

    Raises:
      ValueError: see collected.group; another ending.
    """
    _check_output(output)
    groups = _groups(runs, [x, *by], y, systems, where, over)
    order = [fields.text(value) for value in fields.in_order([one.values[x] for one in groups])]
    groups.sort(key=lambda one: order.index(fields.text(one.values[x])))
    series: dict[str, list[plots.Point]] = {}
    for name in _in_order(groups, by):
        series[name] = [_point(_x(one.values[x]), one, y) for one in groups if _of(one, by) == name]
    plots.lines(output, series, x=x, y=y, title=_title(groups, y, by))


def pareto(
    output: str | Path,
    runs: Sequence[collected.Run],
    *,
    x: str,
    y: str,
    by: Sequence[str] = (),
    systems: Sequence[str] | None = None,
    where: str = "",
    over: Sequence[str] = ("seed",),
) -> None:
    """Draws a measure against a cost, both means over seeds, and the front of what no other setting beats.

    Args:
      x: a number of config.json, or of `meta` in results.json; less is better. `time` is the seconds that
        the training steps took.
      by: fields whose values make the colors; a point is named by the other fields that differ.
      output, runs, y, systems, where, over: see `lines`.

    Raises:
      ValueError: see collected.group; an x that a run has no number for; another ending.
    """
    _check_output(output)
    if where:
        runs = collected.where(runs, fields.assignments(where, "--where"))
    differing = [column.name for column in fields.varying([run.config for run in runs], without=over)]
    others = [name for name in differing if name not in by]
    groups = _groups(runs, [*by, *others], y, systems, "", over)
    known = [run.config | flat(run.results.meta, "meta") for run in runs]
    column = fields.column(_NAMED.get(x, x), known)
    cost = {}
    for run, value in zip(runs, column.values, strict=True):
        if not fields.is_number(value):
            raise ValueError(f"{run.name}: {column.fields[0]} is {value!r}; --x needs a number")
        cost[run.name] = value
    series: dict[str, list[plots.Point]] = {}
    for name in _in_order(groups, by):
        points = [
            _point(seeds.summary([cost[run.name] for run in one.runs]).mean, one, y, _of(one, others))
            for one in groups
            if _of(one, by) == name
        ]
        series[name] = sorted(points, key=lambda point: point.x)
    plots.pareto(output, series, x="training seconds" if x == "time" else x, y=y, title=_title(groups, y, by))


def _groups(
    runs: Sequence[collected.Run],
    names: Sequence[str],
    measure: str,
    systems: Sequence[str] | None,
    where: str,
    over: Sequence[str],
) -> list[collected.Group]:
    if where:
        runs = collected.where(runs, fields.assignments(where, "--where"))
    groups = collected.group(runs, names, collected.systems(runs, systems), over)
    collected.shared_measures(groups, [measure])
    return groups


def _point(x: Any, one: collected.Group, measure: str, label: str = "") -> plots.Point:
    found = one.summary(measure)
    low, high = found.interval(LEVEL) or (None, None)
    return plots.Point(x, found.mean, low, high, label)


def _title(groups: Sequence[collected.Group], measure: str, by: Sequence[str]) -> str:
    of = "" if collected.SYSTEM in by else f" of {groups[0].system}"
    counts = sorted({len(one.runs) for one in groups})
    runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if counts[-1] == 1:
        return f"{measure}{of}, one seed each"
    kind = collected.replicates(groups)
    return f"{measure}{of}: mean of {runs} {kind}, with its {LEVEL:.0%} t interval over {kind}"


def _in_order(groups: Sequence[collected.Group], by: Sequence[str]) -> list[str]:
    """The names of the series, by the order of each field's values."""
    order = {name: [fields.text(v) for v in fields.in_order([g.values[name] for g in groups])] for name in by}
    ranked = sorted(groups, key=lambda one: [order[name].index(fields.text(one.values[name])) for name in by])
    return list(dict.fromkeys(_of(one, by) for one in ranked))


def _of(one: collected.Group, names: Sequence[str]) -> str:
    return ", ".join(f"{name}={fields.text(one.values[name])}" for name in names)


def _x(value: Any) -> Any:
    return value if fields.is_number(value) else fields.text(value)


def _check_output(output: str | Path) -> None:
    if Path(output).suffix not in _KINDS:
        raise ValueError(f"--output is {str(output)!r}; allowed: a name that ends in {' or '.join(_KINDS)}")
    Path(output).parent.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    main()
