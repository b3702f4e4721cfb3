"""The results of a run directory, and the tables made from them.

results.json    {"meta": {...}, "<system>": {measure: mean}}
per_query.json  {"<system>": {measure: {query_id: value}}}
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import measures, trec


@dataclasses.dataclass(frozen=True)
class Results:
    """What one run directory holds: where the numbers come from, the means, and the values behind them."""

    meta: dict[str, Any]
    means: dict[str, dict[str, float]]  # system -> measure -> mean over queries
    per_query: dict[str, measures.PerQuery]  # system -> measure -> query_id -> value


def write(
    run_dir: str | os.PathLike, meta: Mapping[str, Any], systems: Mapping[str, measures.PerQuery]
) -> None:
    """Writes results.json and per_query.json, each whole or not at all, in place of those there.

    Args:
      run_dir: made if need be.
      meta: anything JSON can hold, such as config hash, seed, versions, device and wall time.
      systems: system -> what `measures.evaluate` returned.

    Raises:
      ValueError: a system called "meta", one without queries, a number that is not finite, or a meta that
        JSON cannot hold. Nothing is written then.
    """
    if "meta" in systems:
        raise ValueError('a system is called "meta", which names the description of the run in results.json')
    per_query = {
        system: {
            measure: {
                query_id: _finite(value, system, measure, query_id) for query_id, value in values.items()
            }
            for measure, values in columns.items()
        }
        for system, columns in systems.items()
    }
    try:
        summary = {"meta": json.loads(json.dumps(dict(meta), allow_nan=False))}
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta cannot be written as JSON: {error}") from error
    summary |= {system: measures.means(columns) for system, columns in per_query.items()}

    run_dir = Path(run_dir)
    for name, content in (("per_query.json", per_query), ("results.json", summary)):
        text = json.dumps(content, indent=1 if name == "per_query.json" else 2, allow_nan=False)
        with trec.replacing(run_dir / name) as file:
            file.write(text + "\n")


def read(run_dir: str | os.PathLike) -> Results:
    """What `write` wrote.

    Raises:
      FileNotFoundError: no results there, naming the file.
      ValueError: malformed JSON or another layout, naming file and place; means that are not those of the
        per-query values, as when the two files come from different runs.
    """
    run_dir = Path(run_dir)
    summary, per_query = _load(run_dir / "results.json"), _load(run_dir / "per_query.json")
    if not isinstance(summary.get("meta"), dict):
        raise ValueError(f'{run_dir / "results.json"}: "meta" is {summary.get("meta")!r}, not an object')
    means = {system: values for system, values in summary.items() if system != "meta"}
    for system, values in means.items():
        _check_numbers(run_dir / "results.json", [system], values)
    for system, columns in per_query.items():
        if not isinstance(columns, dict):
            raise ValueError(f"{run_dir / 'per_query.json'}: [{system!r}] is {columns!r}, not an object")
        for measure, values in columns.items():
            _check_numbers(run_dir / "per_query.json", [system, measure], values)
    _check_agreement(run_dir, means, per_query)
    return Results(summary["meta"], means, per_query)


def table(
    results: Results,
    measures: Sequence[str] | None = None,
    baseline: str | None = None,
    p_values: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Systems as rows, measures as columns, means to 4 decimals: markdown that also reads in a terminal.

    Args:
      results: as `read` returns them.
      measures: the columns; by default all, in the order of the systems. A system without one shows "-".
      baseline: a system to compare the others with: its relative difference in percent stands beside a mean.
      p_values: system -> measure -> p of its difference from the baseline, shown where given.

    Raises:
      ValueError: a measure or baseline that is not in the results, or p_values without a baseline.
    """
    known = list(dict.fromkeys(measure for values in results.means.values() for measure in values))
    columns = known if measures is None else list(measures)
    for measure in columns:
        if measure not in known:
            raise ValueError(f"measure {measure!r} is not in the results; they have {known}")
    if baseline is not None and baseline not in results.means:
        raise ValueError(f"baseline {baseline!r} is not in the results; they have {list(results.means)}")
    if p_values is not None and baseline is None:
        raise ValueError("p_values are of differences from a baseline; name it")

    reference = {} if baseline is None else results.means[baseline]
    rows = []
    for system, values in results.means.items():
        p = {} if p_values is None else p_values.get(system, {})
        cells = []
        for measure in columns:
            other = None if system == baseline else reference.get(measure)
            cells.append(_cell(values.get(measure), other, p.get(measure)))
        rows.append([system, *cells])
    return markdown_table(["system", *columns], rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table padded to line up in a terminal: first column to the left, the others to the right.

    ValueError where a row has not as many cells as the header.

    >>> print(markdown_table(["system", "map"], [["bm25", "0.2816"]]))
    | system |    map |
    | :----- | -----: |
    | bm25   | 0.2816 |
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {list(row)} has {len(row)} cells; the header has {len(header)}")
    lines = [[str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


def _cell(value: float | None, other: float | None, p: float | None) -> str:
    if value is None:
        return "-"
    notes = []
    if other is not None:
        notes.append(f"{100 * (value - other) / other:+.1f}%" if other else f"{value - other:+.4f}")
        if p is not None:
            notes.append("p<0.0001" if p < 0.0001 else f"p={p:.4f}")
    return f"{value:.4f} ({', '.join(notes)})" if notes else f"{value:.4f}"


def _finite(value: float, *place: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"the value of {', '.join(map(repr, place))} is {value!r}; results must be finite")
    return float(value)


def _load(path: Path) -> dict[str, Any]:
    def refuse(constant: str):
        raise ValueError(f"holds {constant}; results must be finite")

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; has this run been evaluated?")
    try:
        content = json.loads(path.read_bytes(), parse_constant=refuse)
    except ValueError as error:  # also what is not UTF-8
        raise ValueError(f"{path}: not the JSON of results: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a JSON {type(content).__name__}, not an object")
    return content


def _check_numbers(path: Path, place: list[str], values: Any) -> None:
    where = "".join(f"[{name!r}]" for name in place)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: {where} is {values!r}, not an object")
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{path}: {where}[{name!r}] is {value!r}, not a finite number")


def _check_agreement(run_dir: Path, means: dict[str, Any], per_query: dict[str, Any]) -> None:
    """An evaluation cut short between the two files leaves one of an earlier run."""
    try:
        expected = {system: measures.means(columns) for system, columns in per_query.items()}
    except ValueError as error:
        raise ValueError(f"{run_dir / 'per_query.json'}: {error}") from error
    for system in means | expected:
        ours, theirs = means.get(system), expected.get(system)
        if ours is None or theirs is None or ours.keys() != theirs.keys():
            raise ValueError(
                f"{run_dir}: results.json and per_query.json differ in the measures of {system!r}"
            )
        for measure in ours:
            if not math.isclose(ours[measure], theirs[measure], abs_tol=1e-9):
                raise ValueError(
                    f"{run_dir}: results.json has {ours[measure]} for {system!r}, {measure!r}, "
                    f"but per_query.json averages to {theirs[measure]}"
                )
