"""Runs read back for tables and plots: from each one's config.json, results.json and per_query.json alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import comparison, results, seeds
from experiments import fields, run_dirs
from training.files import flat

SYSTEM = "system"
TRAINED = (
    "dual_encoder",
    "generative",
    "cross_encoder",
)  # what a run has trained, by family, beside what it is compared with
PAPER = "paper"  # the config's field for what a paper reports
_MARKS = run_dirs.CONFIG_FILE, "results.json"  # a folder with one of these is a run directory
_JUDGED_BY = ("data", "evaluation")  # the fields of a config that say on what a run is judged


@dataclasses.dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
      name: its path, as it was given.
      config: flat: dotted path -> value.
      results: see eval.results.
      paper: the config's `paper`, see `paper_number`.
    """

    name: str
    config: dict[str, Any]
    results: results.Results
    paper: Mapping[str, Any]

    def paper_number(self, system: str, measure: str) -> float | None:
        """Returns what the config says that its paper reports; None where it says nothing.

        The field `paper` is optional: dict(title="...", numbers={system: {measure: value}}), laid out as
        results.json is.
        """
        number = self.paper.get("numbers", {}).get(system, {}).get(measure)
        return None if number is None else float(number)


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs of one setting and system, which differ in their seed.

    Attributes:
      values: of the fields that the groups are told apart by, by name.
      judged: the values of those that say on what it was judged; only groups that agree in them compare.
    """

    values: dict[str, Any]
    judged: tuple[str, ...]
    system: str
    runs: tuple[Run, ...]

    def summary(self, measure: str) -> seeds.Summary:
        return seeds.summary([run.results.means[self.system][measure] for run in self.runs])

    def per_query(self, measure: str) -> dict[str, float]:
        """Returns query_id -> value, averaged over the runs."""
        return seeds.averaged([run.results.per_query[self.system] for run in self.runs], measure)

    def paper(self, measure: str) -> float | None:
        return self.runs[0].paper_number(self.system, measure)

    def __str__(self) -> str:
        return ", ".join(f"{name}={fields.text(value)}" for name, value in self.values.items()) or self.system


def read(paths: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """Reads runs.

    Args:
      paths: run directories, or folders of them at any depth; symbolic links within a folder are left out.

    Returns:
      the runs, in the order of their paths, and what was left out: the runs found within a folder that lack
      a file, as those that are not finished do, each with the reason.

    Raises:
      ValueError: a folder without runs, one given twice, damaged files.
      FileNotFoundError: a run that is itself named lacks a file.
    """
    found, left_out, seen = [], [], set()
    for path in map(Path, paths):
        folders = _run_dirs(path)
        if not folders:
            raise ValueError(f"{path} is no run directory and holds none: there is no {_MARKS[0]}")
        for folder in folders:
            if folder.resolve() in seen:
                raise ValueError(f"{folder} is given twice")
            seen.add(folder.resolve())
            try:
                if not (folder / run_dirs.CONFIG_FILE).is_file():
                    raise FileNotFoundError(f"{folder / run_dirs.CONFIG_FILE} does not exist")
                read_results = results.read(folder)
            except FileNotFoundError as error:
                if folder == path:
                    raise
                left_out.append(str(error))
                continue
            config = run_dirs.load_config(folder)
            paper = config.pop(PAPER, None) or {}
            _check_paper(folder, paper, read_results)
            found.append(Run(str(folder), flat(config), read_results, paper))
    if not found:
        raise ValueError(f"no run in {', '.join(map(str, paths))} has results: {'; '.join(left_out)}")
    return found, left_out


def where(runs: Sequence[Run], conditions: Mapping[str, str]) -> list[Run]:
    """Returns the runs whose fields have these values. Raises ValueError where none has."""
    kept = list(runs)
    for name, given in conditions.items():
        column = fields.column(name, [run.config for run in kept])
        kept = [run for run, value in zip(kept, column.values, strict=True) if fields.matches(value, given)]
        if not kept:
            there = ", ".join(map(fields.text, fields.in_order(column.values)))
            raise ValueError(f"--where: no run has {name}={given}; they have {there}")
    return kept


def systems(runs: Sequence[Run], given: Sequence[str] | None) -> list[str]:
    """Returns the systems asked for, or the one that all the runs share, one of TRAINED before others.

    Raises:
      ValueError: a run lacks one; none is asked for, and which is meant is not clear.
    """
    shared = [name for name in runs[0].results.means if all(name in run.results.means for run in runs)]
    if given is not None:
        for run in runs:
            for name in given:
                if name not in run.results.means:
                    raise ValueError(
                        f"{run.name} has no system {name!r}; it has {', '.join(run.results.means)}"
                    )
        return list(given)
    for name in TRAINED:
        if name in shared:
            return [name]
    if len(shared) == 1:
        return shared
    raise ValueError(f"--system is not given; the systems that all runs have: {', '.join(shared) or 'none'}")


def group(
    runs: Sequence[Run], names: Sequence[str], of_systems: Sequence[str], over: Sequence[str] = ("seed",)
) -> list[Group]:
    """Groups runs by fields.

    Args:
      names: the fields, see fields.column; may have `system` among them.
      of_systems: the systems that become groups; more than one only with `system` among the names.
      over: fields that the runs of one group may differ in, with all below them, see fields.varying.

    Raises:
      ValueError: runs of one group that differ in another field, or in nothing; runs that would stand beside
        each other and were judged on different queries or collections.
    """
    if len(of_systems) > 1 and SYSTEM not in names:
        raise ValueError(f"systems are {', '.join(of_systems)}; name {SYSTEM} among the fields")
    configs = [run.config for run in runs]
    for name in over:
        if name != "seed" and not any(
            fields.is_below(field, [name]) for config in configs for field in config
        ):
            raise ValueError(f"--over: the configs have no field {name}")
    columns = {name: fields.column(name, configs) for name in names if name != SYSTEM}
    judging = [name for name, column in columns.items() if column.fields[0].split(".")[0] in _JUDGED_BY]
    found: dict[str, tuple[dict[str, Any], tuple[str, ...], str, list[Run]]] = {}
    for i, run in enumerate(runs):
        for system in of_systems:
            values = {name: system if name == SYSTEM else columns[name].values[i] for name in names}
            key = repr([fields.text(value) for value in values.values()])
            judged = tuple(fields.text(values[name]) for name in judging)
            found.setdefault(key, (values, judged, system, []))[-1].append(run)
    groups = [Group(values, judged, system, tuple(of)) for values, judged, system, of in found.values()]
    for one in groups:
        _check_one_setting(one, over)
    _check_judged_alike(groups)
    return groups


def shared_measures(groups: Sequence[Group], names: Sequence[str] | None) -> list[str]:
    """Returns the measures asked for, or all that every run has. Raises ValueError where one is missing."""
    columns = {
        f"{one.system} of {run.name}": run.results.means[one.system] for one in groups for run in one.runs
    }
    first = next(iter(columns.values()))
    if names is None:
        names = [name for name in first if all(name in column for column in columns.values())]
        if not names:
            raise ValueError("the runs have no measure in common")
    for of, column in columns.items():
        comparison.check_measures(of, column, names)
    return list(names)


def replicates(groups: Sequence[Group]) -> str:
    """Returns what a mean is over: seeds, or runs where those of one group differ in other fields as well."""
    more = any(fields.varying([run.config for run in one.runs], without=["seed"]) for one in groups)
    return "runs" if more else "seeds"


def _run_dirs(path: Path) -> list[Path]:
    if any((path / name).is_file() for name in _MARKS):
        return [path]
    if not path.is_dir():
        return []
    inside = [inner for inner in sorted(path.iterdir()) if inner.is_dir() and not inner.is_symlink()]
    return [found for inner in inside for found in _run_dirs(inner)]


def _check_paper(folder: Path, paper: Any, read_results: results.Results) -> None:
    numbers = paper.get("numbers", {}) if isinstance(paper, Mapping) else None
    if not isinstance(numbers, Mapping) or not all(isinstance(of, Mapping) for of in numbers.values()):
        raise ValueError(
            f"{folder}: config.paper is {paper!r}; allowed: title, and numbers as system -> measure -> value"
        )
    for system, of in numbers.items():
        if system not in read_results.means:
            raise ValueError(
                f"{folder}: config.paper.numbers has {system!r}; allowed: {', '.join(read_results.means)}"
            )
        for measure, number in of.items():
            if not fields.is_number(number):
                raise ValueError(
                    f"{folder}: config.paper.numbers.{system}.{measure} is {number!r}; it must be a number"
                )


def _check_one_setting(one: Group, over: Sequence[str]) -> None:
    differing = fields.varying([run.config for run in one.runs], without=over)
    if differing:
        raise ValueError(
            f"{one.runs[0].name} and others would be one cell ({one}), but differ in "
            f"{', '.join(column.name for column in differing)}: name it among the rows or columns, keep one "
            "value with --where, or allow it with --over"
        )
    same: dict[str, str] = {}
    for run in one.runs:
        first = same.setdefault(fields.key(run.config), run.name)
        if first != run.name:
            raise ValueError(f"{first} and {run.name} are runs of the same config, which would count twice")


def _check_judged_alike(groups: Sequence[Group]) -> None:
    """Groups that agree in what they are judged on must have the same collection and queries."""
    first_of: dict[tuple[str, ...], tuple[Run, str]] = {}
    for one in groups:
        for run in one.runs:
            first, system = first_of.setdefault(one.judged, (run, one.system))
            ours, theirs = (of.results.meta.get("corpus_hash") for of in (first, run))
            if ours and theirs and ours != theirs:
                raise ValueError(f"{first.name} and {run.name} were judged on different collections")
            for measure in first.results.per_query[system].keys() & run.results.per_query[one.system].keys():
                comparison.check_queries(
                    first.name,
                    first.results.per_query[system][measure],
                    run.name,
                    run.results.per_query[one.system][measure],
                )
