"""Ablations of dual encoders: cells that differ in one thing, several seeds each, compared query by query.

A cell is the config configs/dual_encoder/recipe.py with an argument and fields of its own. Cells of all
ablations are kept in one folder, so a run that two of them have in common is trained once. A budget of `cpu`
trains the cells that are not `extra`, on the first collection; `sweep` goes on with all others. What was not
run stands in the table as unrun.

The difference of two cells is tested over queries, with each query's value averaged over the seeds.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval import results, seeds, significance
from experiments.reproduce import runs
from experiments.reproduce.claims import Claim, Outcome, judge, skipped

BUDGETS = {"cpu": 1, "sweep": 2}  # how many of `COLLECTIONS`
COLLECTIONS = ("medquad", "fairytaleqa")
SEEDS = (0, 1, 2)
MEASURE = "ndcg@10"
SHOWN = (MEASURE, "mrr@10", "recall@100")
CONFIG = "dual_encoder/recipe.py"
# The argument of configs/cross_encoder/beir_folder.py for a judge and teacher: 2 layers of 128.
CROSS_ENCODER = {
    "objective": "pointwise",
    "steps": 150,
    "batch": 32,
    "width": 128,
    "layers": 2,
    "document": 64,
}
LEVEL, CLOSE = 0.05, 0.005  # of p; of nDCG@10, what counts as no difference
# BM25 is no part of what is compared: one setting of it, not the grid, in each run's evaluation.
_QUICK = {
    "evaluation.bm25_grid.k1": "(0.9,)",
    "evaluation.bm25_grid.b": "(0.4,)",
    "evaluation.bm25_grid.title_weight": "(4.0,)",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """Attributes:
    name: short.
    what: what is changed, in words.
    given: the config's argument.
    changed: fields of the config to override.
    needs: by key of the argument, the cell (its first seed) or the entry of `Ablation.teachers` whose run it
      is given.
    system: of its results, such as `dual_encoder`.
    extra: whether it is left to the sweep.
    """

    name: str
    what: str
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    changed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    system: str = "dual_encoder"
    extra: bool = False


@dataclasses.dataclass(frozen=True)
class Found:
    """What the runs of a cell came to.

    Attributes:
      per_query: by measure, each query's value averaged over the seeds.
      means: by measure, the mean of each seed.
      seconds: of training, of each seed.
    """

    per_query: Mapping[str, Mapping[str, float]]
    means: Mapping[str, Sequence[float]]
    seconds: Sequence[float]

    def shown(self, measure: str) -> str:
        """Mean and standard deviation over seeds."""
        summary = seeds.summary(self.means[measure])
        return f"{summary.mean:.4f} ± {summary.std or 0:.4f}"


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Attributes:
    title: what is varied, and after whom.
    cells: the first is what the others are compared with.
    claims: from what was found on the first collection, the papers' claims with their verdicts.
    teachers: by name, the config file and argument of runs that cells learn from.
    notes: departures and choices.
    draw: draws the plot of the first collection; None draws a bar for each cell.
    """

    title: str
    cells: Sequence[Cell]
    claims: Callable[["Judge"], Sequence[Claim]]
    teachers: Mapping[str, tuple[str, Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    draw: Callable[[Figure, Mapping[str, Found]], None] | None = None


def run(ablation: Ablation, budget: str, folder: Path) -> Outcome:
    """Trains what the budget has and is not there yet, and judges the claims.

    Args:
      ablation: what to compare.
      budget: one of `BUDGETS`.
      folder: of this ablation; the runs are beside it.
    """
    kept = folder.parent / "dual_encoder_cells"
    for number, collection in enumerate(COLLECTIONS[: BUDGETS[budget]]):
        for cell in ablation.cells:
            if cell.extra and budget == "cpu":
                continue
            for seed in SEEDS:
                print(f"{collection} {number + 1}: {cell.name}, seed {seed}", flush=True)
                _train(ablation, cell, collection, seed, kept)
    found = {collection: _collect(ablation, collection, kept) for collection in COLLECTIONS}
    first = found[COLLECTIONS[0]]
    draw = ablation.draw or (lambda figure, of: bars(figure.subplots(), of))
    return Outcome(
        title=ablation.title,
        claims=list(ablation.claims(Judge(first))),
        numbers={
            collection: {
                name: {"means": dict(of.means), "training_seconds": list(of.seconds)}
                for name, of in cells.items()
            }
            for collection, cells in found.items()
        },
        tables={collection: table(ablation.cells, cells) for collection, cells in found.items()},
        notes=[
            *ablation.notes,
            f"Each cell has the seeds {', '.join(map(str, SEEDS))}, which change initialization, order and "
            "draws. p is that of the paired randomization test over test queries, values averaged over the "
            "seeds, against the first cell, by Holm's correction over the cells of the table. Seconds of "
            "training are on the wall, on a machine that had other work at times.",
        ],
        draw=lambda figure: draw(figure, first),
    )


class Judge:
    """Holds pairs of cells against each other, by nDCG@10."""

    def __init__(self, found: Mapping[str, Found]):
        self.found = found

    def above(self, name: str, paper: str, cell: str, than: str, *, note: str = "") -> Claim:
        """A claim that one cell is better than another."""
        rule = (
            f"{MEASURE} of `{cell}` against `{than}`: reproduced if its mean over the seeds is higher and "
            f"the paired randomization test over queries has p < {LEVEL}; direction if the mean is higher."
        )
        lacks = self._lacks(cell, than)
        if lacks:
            return skipped(name, paper, rule, lacks)
        difference, p = self._test(cell, than)
        verdict = judge(difference > 0 and p < LEVEL, difference > 0)
        return Claim(name, paper, rule, f"{difference:+.4f} ({_shown(p)})", verdict, note)

    def not_below(self, name: str, paper: str, cell: str, than: str, *, note: str = "") -> Claim:
        """A claim that one cell is as good as another, up to `CLOSE`."""
        rule = (
            f"{MEASURE} of `{cell}` against `{than}`: reproduced if its mean over the seeds is at most "
            f"{CLOSE} lower; direction if it is lower by more, but the paired randomization test over "
            f"queries has p >= {LEVEL}."
        )
        lacks = self._lacks(cell, than)
        if lacks:
            return skipped(name, paper, rule, lacks)
        difference, p = self._test(cell, than)
        verdict = judge(difference >= -CLOSE, p >= LEVEL)
        return Claim(name, paper, rule, f"{difference:+.4f} ({_shown(p)})", verdict, note)

    def _lacks(self, *cells: str) -> str:
        return " ".join(f"The cell `{cell}` was not run." for cell in cells if cell not in self.found)

    def _test(self, cell: str, than: str) -> tuple[float, float]:
        """Returns the difference of the means and its p."""
        first, second = self.found[cell].per_query[MEASURE], self.found[than].per_query[MEASURE]
        difference = statistics.fmean(first.values()) - statistics.fmean(second.values())
        return difference, significance.randomization_test(first, second)


def table(cells: Sequence[Cell], found: Mapping[str, Found]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Returns header and rows of a collection's cells."""
    base = found.get(cells[0].name)
    others = [cell.name for cell in cells[1:] if cell.name in found] if base else []
    tests = [
        significance.randomization_test(found[name].per_query[MEASURE], base.per_query[MEASURE])
        for name in others
    ]
    p_of = dict(zip(others, significance.holm(tests), strict=True))
    rows = []
    for cell in cells:
        of = found.get(cell.name)
        if of is None:
            rows.append([cell.name, cell.what, "unrun", *[""] * (len(SHOWN) + 1)])
            continue
        rows.append(
            [
                cell.name,
                cell.what,
                *(of.shown(measure) for measure in SHOWN),
                _shown(p_of[cell.name]).removeprefix("p = ").removeprefix("p ") if cell.name in p_of else "",
                f"{statistics.fmean(of.seconds):.0f} s",
            ]
        )
    return ["cell", "what", *SHOWN, "p", "training"], rows


def _shown(p: float) -> str:
    """As in tables of runs: no p is 0."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}"


def bars(axes: Axes, found: Mapping[str, Found]) -> None:
    """Draws the mean of each cell, and a point for each seed."""
    names = list(found)[::-1]
    axes.barh(names, [statistics.fmean(found[name].means[MEASURE]) for name in names], color="tab:blue")
    values = [value for name in names for value in found[name].means[MEASURE]]
    for place, name in enumerate(names):
        axes.plot(found[name].means[MEASURE], [place] * len(SEEDS), "k.", markersize=4)
    if values:
        margin = max(0.01, 0.3 * (max(values) - min(values)))
        axes.set_xlim(max(0.0, min(values) - margin), min(1.0, max(values) + margin / 2))
    axes.set_xlabel(f"nDCG@10 on {COLLECTIONS[0]}: mean, and each seed (the axis does not begin at 0)")
    axes.grid(axis="x", alpha=0.3)


def _settings(
    ablation: Ablation, cell: Cell, collection: str, seed: int, kept: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    given = {"folder": collection, **cell.given}
    for key, needed in cell.needs.items():
        given[key] = _needed(ablation, needed, collection, kept)
    return given, {**_QUICK, **cell.changed, "seed": seed}


def _needed(ablation: Ablation, needed: str, collection: str, kept: Path) -> Path:
    if needed in ablation.teachers:
        _, given = ablation.teachers[needed]
        return runs.directory(kept, f"{collection}-{needed}", {"folder": collection, **given})
    cell = next(cell for cell in ablation.cells if cell.name == needed)
    return _directory(ablation, cell, collection, SEEDS[0], kept)


def _directory(ablation: Ablation, cell: Cell, collection: str, seed: int, kept: Path) -> Path:
    given, changed = _settings(ablation, cell, collection, seed, kept)
    return runs.directory(kept, collection, given, changed)


def _train(ablation: Ablation, cell: Cell, collection: str, seed: int, kept: Path) -> None:
    for needed in cell.needs.values():
        if needed in ablation.teachers:
            config, given = ablation.teachers[needed]
            runs.train(kept, f"{collection}-{needed}", config, {"folder": collection, **given})
        else:
            other = next(cell for cell in ablation.cells if cell.name == needed)
            _train(ablation, other, collection, SEEDS[0], kept)
    given, changed = _settings(ablation, cell, collection, seed, kept)
    runs.train(kept, collection, CONFIG, given, changed)


def _collect(ablation: Ablation, collection: str, kept: Path) -> dict[str, Found]:
    """Returns by name the cells all of whose seeds are there."""
    found = {}
    for cell in ablation.cells:
        folders = [_directory(ablation, cell, collection, seed, kept) for seed in SEEDS]
        if not all(map(runs.is_done, folders)):
            continue
        read = [results.read(folder) for folder in folders]
        per_query = [one.per_query[cell.system] for one in read]
        found[cell.name] = Found(
            {measure: seeds.averaged(per_query, measure) for measure in SHOWN},
            {measure: [statistics.fmean(one[measure].values()) for one in per_query] for measure in SHOWN},
            [one.meta["wall_seconds"]["training"] for one in read],
        )
    return found
