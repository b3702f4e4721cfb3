"""Make a table of runs: mean and standard deviation over seeds, the best in bold, p against a baseline.

RUN is a run directory or a folder of them, such as a sweep's. Rows and columns are fields of the config, by
their path or the end of it, or `system`. Without them there is a row for every setting, and a column for
every measure. Everything is read from config.json, results.json and per_query.json.

Examples:
  python -m experiments.table runs/sweeps/fairytaleqa
  python -m experiments.table runs/sweeps/fairytaleqa --rows=token_dropout --columns=neighbors \\
      --measure=ndcg@10 --baseline=token_dropout=0.0,neighbors=1
  python -m experiments.table runs/a runs/b --rows=system --measure=ndcg@10 --baseline=system=bm25 \\
      --system=bm25,dual_encoder,hybrid --format=latex --output=table.tex
"""

import dataclasses
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import seeds, significance, tables, trec
from experiments import cli, collected, fields
from training.progress import Progress

_FORMATS = ("markdown", "latex", "csv", "json")
_SAMPLES = 100_000  # of each randomization test
_WIDTH = 100  # of a caption's lines


@dataclasses.dataclass(frozen=True)
class Entry:
    """One setting, system and measure.

    Attributes:
      values: of the fields in rows and columns, by name.
      summary: mean, standard deviation and number over seeds.
      queries: over how many queries each mean is.
      best: whether no entry of the same measure, on the same queries, has a higher mean.
      baseline: whether others are compared with it.
      difference, p, p_holm: of the mean from its baseline's; None where there is none to compare with.
      paper: what the config says that its paper reports.
    """

    values: dict[str, Any]
    system: str
    measure: str
    summary: seeds.Summary
    queries: int
    best: bool
    baseline: bool
    difference: float | None
    p: float | None
    p_holm: float | None
    paper: float | None


@dataclasses.dataclass(frozen=True)
class Table:
    """Entries in order, and how they are laid out.

    Attributes:
      rows, columns: names of fields; the measures are columns too, below the values of `columns`.
      baseline: what was asked for, such as temperature=0.05; "" for none.
      replicates: what each mean is over, seeds or runs, see collected.replicates.
    """

    entries: tuple[Entry, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    measures: tuple[str, ...]
    baseline: str = ""
    replicates: str = "seeds"

    def caption(self) -> str:
        """Returns what a reader must know of the numbers."""
        systems = list(dict.fromkeys(entry.system for entry in self.entries))
        of = f" of {systems[0]}" if collected.SYSTEM not in (*self.rows, *self.columns) else ""
        counts = sorted({entry.summary.n for entry in self.entries})
        number = counts[0] if len(counts) == 1 else "n"
        over = f"{number} {self.replicates}"
        what = "one seed each" if counts == [1] else f"mean ± standard deviation over {over}"
        queries = " or ".join(f"{number:,}" for number in sorted({entry.queries for entry in self.entries}))
        text = f"{', '.join(self.measures)}{of}: {what}; {queries} queries."
        if any(entry.best for entry in self.entries):
            text += " The best is in bold."
        tests = sum(entry.p is not None for entry in self.entries)
        if not tests:
            return text
        comparisons = "1 comparison" if tests == 1 else f"{tests} comparisons"
        return (
            f"{text} p is of the difference from {self.baseline}: paired randomization test over queries, "
            f"{_SAMPLES:,} samples, each query's value averaged over {self.replicates}; corrected for the "
            f"{comparisons} of this table (Holm, 1979)."
        )

    def markdown(self) -> str:
        return tables.markdown(*self._grid(), textwrap.fill(self.caption(), _WIDTH))

    def latex(self) -> str:
        return tables.latex(*self._grid(), self.caption(), labels=max(1, len(self.rows)))

    def csv(self) -> str:
        return tables.comma_separated(self.records())

    def json(self) -> str:
        return json.dumps(self.records(), indent=1) + "\n"

    def records(self) -> list[dict[str, Any]]:
        """Returns an entry a mapping: its fields, system, measure, mean, std, n, p and the like.

        A field that is named as one of these is config.NAME.
        """
        records = []
        for entry in self.entries:
            own = {
                collected.SYSTEM: entry.system,
                "measure": entry.measure,
                **dataclasses.asdict(entry.summary),
                "queries": entry.queries,
                "baseline": entry.baseline,
                "difference": entry.difference,
                "p": entry.p,
                "p_holm": entry.p_holm,
                "paper": entry.paper,
            }
            taken = own.keys() - {collected.SYSTEM}  # which among the fields is no other
            values = {f"config.{name}" if name in taken else name: v for name, v in entry.values.items()}
            records.append({**values, **own})
        return records

    def _grid(self) -> tuple[list[str], list[list[tables.Cell | str]]]:
        """Returns header and rows."""
        labels = _distinct(self.entries, self.rows)
        heads = _distinct(self.entries, self.columns)
        cells = {
            (_key(entry, self.rows), _key(entry, self.columns), entry.measure): entry
            for entry in self.entries
        }
        same_n = len({entry.summary.n for entry in self.entries}) == 1
        only = collected.SYSTEM, self.entries[0].system
        if collected.SYSTEM in self.columns:
            only = "measure", ", ".join(self.measures)
        header, body = [*self.rows] or [only[0]], [[*label] or [only[1]] for label in labels]
        for measure in self.measures:
            beside = _papers_beside(self.entries, self.rows, measure)
            for head in heads:
                of = ", ".join(f"{name}={value}" for name, value in zip(self.columns, head, strict=True))
                title = of if of and len(self.measures) == 1 else f"{of} {measure}".strip()
                entries = [cells.get((label, head, measure)) for label in labels]
                header.append(title)
                for row, entry in zip(body, entries, strict=True):
                    row.append("-" if entry is None else _cell(entry, same_n))
                if beside:
                    header.append(f"{title}, paper")
                    for row, entry in zip(body, entries, strict=True):
                        row.append(_number(None if entry is None else entry.paper))
            if not beside and any(
                entry.paper is not None for entry in self.entries if entry.measure == measure
            ):
                header.append("paper" if len(self.measures) == 1 else f"{measure}, paper")
                for row, label in zip(body, labels, strict=True):
                    of_row = (cells.get((label, head, measure)) for head in heads)
                    row.append(_number(next((e.paper for e in of_row if e and e.paper is not None), None)))
        return header, body


def main() -> None:
    """Entry point of `retrievax-table`."""
    command = cli.Command(__doc__)
    runs = command.arguments("RUN", "run directories that have been evaluated, or folders of them.", least=1)
    rows = command.string("rows", None, "Fields that make the rows, joined by commas.")
    columns = command.string("columns", None, "Fields that make the columns, joined by commas.")
    measure = command.string("measure", None, "Measures, joined by commas; by default all that are shared.")
    system = command.string("system", None, "Systems, joined by commas; by default what the runs trained.")
    baseline = command.string(
        "baseline", None, "What others are compared with, FIELD=VALUE,...; fields that it leaves out have "
        "the values of the cell that is compared.",
    )  # fmt: skip
    where = command.string("where", None, "Only runs with these values, FIELD=VALUE,...")
    over = command.string("over", "seed", "Fields that the runs of one cell may differ in, joined by commas.")
    style = command.choice("format", "markdown", _FORMATS, "What to print.")
    output = command.string("output", None, "A file to write the table to as well.")

    def table() -> None:
        with cli.expecting(OSError, ValueError):
            found, left_out = collected.read(runs.values)
            made = make(
                found,
                rows=cli.split(rows.value),
                columns=cli.split(columns.value),
                measures=cli.split(measure.value),
                systems=cli.split(system.value),
                baseline=baseline.value or "",
                where=where.value or "",
                over=cli.split(over.value),
            )
            text = getattr(made, style.value)()
            if output.value is not None:
                with trec.replacing(Path(output.value)) as file:
                    file.write(text)
        for reason in left_out:
            print(f"left out: {reason}", file=sys.stderr)
        print(text, end="")

    command.run(table)


def make(
    runs: Sequence[collected.Run],
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    baseline: str = "",
    where: str = "",
    over: Sequence[str] = ("seed",),
) -> Table:
    """Makes a table of runs.

    Args:
      runs: see collected.read.
      rows, columns: fields, or `system`; None for both gives a row for every setting.
      measures: None for all that every run has.
      systems: None for what the runs trained; several need `system` among the rows or columns.
      baseline: FIELD=VALUE,... of rows or columns; the others are those of the cell that is compared.
      where: FIELD=VALUE,... that a run must have.
      over: fields that the runs of one cell may differ in.

    Raises:
      ValueError: see collected.group; a baseline that is not in the table.
    """
    if where:
        runs = collected.where(runs, fields.assignments(where, "--where"))
    systems = collected.systems(runs, systems)
    if rows is None and columns is None:
        rows = [column.name for column in fields.varying([run.config for run in runs], without=over)]
        rows += [collected.SYSTEM] * (len(systems) > 1)
    rows, columns = tuple(rows or ()), tuple(columns or ())
    groups = _sorted(collected.group(runs, [*rows, *columns], systems, over), [*rows, *columns])
    measures = collected.shared_measures(groups, measures)
    of_baseline = _baselines(groups, fields.assignments(baseline, "--baseline") if baseline else {})
    entries = _entries(groups, measures, of_baseline)
    return Table(entries, rows, columns, tuple(measures), baseline, collected.replicates(groups))


def _entries(
    groups: Sequence[collected.Group], measures: Sequence[str], baselines: Mapping[int, int]
) -> tuple[Entry, ...]:
    """`baselines` has the number of the group that each is compared with."""
    tests = [(i, measure) for measure in measures for i in baselines if baselines[i] != i]
    progress = Progress(len(tests), unit="test", title="randomization tests")
    p_values = []
    for done, (i, measure) in enumerate(tests, 1):
        ours, theirs = (groups[j].per_query(measure) for j in (i, baselines[i]))
        p_values.append(significance.randomization_test(ours, theirs, samples=_SAMPLES))
        progress.update(done)
    progress.close()
    corrected = dict(zip(tests, zip(p_values, significance.holm(p_values), strict=True), strict=True))
    entries = []
    for measure in measures:
        means = [one.summary(measure).mean for one in groups]
        for i, one in enumerate(groups):
            p, p_holm = corrected.get((i, measure), (None, None))
            rivals = [means[j] for j, other in enumerate(groups) if other.judged == one.judged]
            entries.append(
                Entry(
                    values=one.values,
                    system=one.system,
                    measure=measure,
                    summary=one.summary(measure),
                    queries=len(one.per_query(measure)),
                    best=len(rivals) > 1 and means[i] == max(rivals),
                    baseline=i in baselines.values(),
                    difference=None if p is None else means[i] - means[baselines[i]],
                    p=p,
                    p_holm=p_holm,
                    paper=one.paper(measure),
                )
            )
    return tuple(entries)


def _baselines(groups: Sequence[collected.Group], given: Mapping[str, str]) -> dict[int, int]:
    """Returns which group each is compared with: the one with the values given and, in all else, its own."""
    if not given:
        return {}
    names = list(groups[0].values)
    for name, value in given.items():
        if name not in names:
            raise ValueError(f"--baseline names {name}; allowed: the rows and columns, {', '.join(names)}")
        there = fields.in_order([one.values[name] for one in groups])
        if not any(fields.matches(each, value) for each in there):
            raise ValueError(
                f"--baseline: {name}={value} is not there; allowed: {', '.join(map(fields.text, there))}"
            )
    found = {}
    for i, one in enumerate(groups):
        for j, other in enumerate(groups):
            if one.judged == other.judged and all(
                fields.matches(other.values[name], given[name])
                if name in given
                else other.values[name] == one.values[name]
                for name in names
            ):
                found[i] = j
    if not found:
        raise ValueError(f"--baseline: no runs have {', '.join(f'{n}={v}' for n, v in given.items())}")
    return found


def _sorted(groups: Sequence[collected.Group], names: Sequence[str]) -> list[collected.Group]:
    order = {
        name: [fields.text(v) for v in fields.in_order([one.values[name] for one in groups])]
        for name in names
    }
    return sorted(
        groups, key=lambda one: [order[name].index(fields.text(one.values[name])) for name in names]
    )


def _distinct(entries: Sequence[Entry], names: Sequence[str]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(_key(entry, names) for entry in entries))


def _key(entry: Entry, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(fields.text(entry.values[name]) for name in names)


def _papers_beside(entries: Sequence[Entry], rows: Sequence[str], measure: str) -> bool:
    """Whether some row has more than one number of a paper, which then stand beside what they belong to."""
    of_row: dict[tuple[str, ...], set[float]] = {}
    for entry in entries:
        if entry.measure == measure and entry.paper is not None:
            of_row.setdefault(_key(entry, rows), set()).add(entry.paper)
    return any(len(numbers) > 1 for numbers in of_row.values())


def _cell(entry: Entry, same_n: bool) -> tables.Cell:
    spread = "" if entry.summary.std is None else f" ± {entry.summary.std:.4f}"
    notes = [] if same_n else [f"n={entry.summary.n}"]
    if entry.p_holm is not None:
        notes.append("p<0.0001" if entry.p_holm < 0.0001 else f"p={entry.p_holm:.4f}")
    elif entry.baseline:
        notes.append("baseline")
    return tables.Cell(f"{entry.summary.mean:.4f}{spread}", entry.best, ", ".join(notes))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
