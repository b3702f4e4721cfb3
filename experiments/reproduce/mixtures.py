"""Small mixtures of experts on real text, for the papers that vary one thing of them.

All are configs/language_model/mixture.py: a language model on children's stories, medical answers and
abstracts on aerodynamics, each domain a third of every batch.
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from corpora.sources import beir_folder
from corpora.tables import DataError
from eval import results, trec
from experiments import experts, recording
from experiments.cli import UsageError
from experiments.reproduce import runs

CONFIG = "language_model/mixture.py"
FOLDERS = ("fairytaleqa", "medquad", "cranfield")
_TEXTS = 100  # of each domain, whose routing is recorded


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a budget sets; a model's other fields are the study's.

    Attributes:
      steps: of training.
      seeds: of initialization and order.
      width, layers, length, batch: of the model and its batches.
    """

    steps: int
    seeds: tuple[int, ...]
    width: int = 128
    layers: int = 3
    length: int = 128
    batch: int = 32


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a run comes to.

    Attributes:
      loss: on test, nats a token, by domain and "all".
      layers: of the routing of test texts, see experiments.experts.layer_report.
    """

    loss: Mapping[str, float]
    layers: Sequence[Mapping[str, Any]]

    def mean(self, *keys: str) -> float:
        """Returns the mean over layers of a number of the report."""
        found = []
        for layer in self.layers:
            for key in keys:
                layer = layer[key]
            found.append(float(layer))
        return statistics.mean(found)


def train(folder: Path, arms: Mapping[str, Mapping[str, Any]], sizes: Sizes) -> dict[str, dict[int, Figures]]:
    """Trains every arm with every seed, or goes on with it; returns by arm and seed what came of it.

    Args:
      folder: of the runs.
      arms: by name, what each adds to the config's argument.
      sizes: what all have in common.

    Raises:
      UsageError: a collection is not there, or a training failed.
    """
    for name in FOLDERS:
        try:
            beir_folder.find(name)
        except DataError as error:
            raise UsageError(f"the collections {', '.join(FOLDERS)} are needed: {error}") from None
    common = {field: value for field, value in dataclasses.asdict(sizes).items() if field != "seeds"}
    common |= dict(folders="+".join(FOLDERS), even=1)
    return {
        arm: {
            seed: _read(runs.train(folder, f"{arm}-{seed}", CONFIG, {**common, **fields, "seed": seed}))
            for seed in sizes.seeds
        }
        for arm, fields in arms.items()
    }


def numbers(trained: Mapping[str, Mapping[int, Figures]]) -> dict[str, dict[str, Any]]:
    """Returns all that is known of each run, as JSON can hold it."""
    return {
        arm: {
            str(seed): {
                "loss": dict(run.loss),
                "domain_information": run.mean("by_domain", "information"),
                "token_id_information": run.mean("by_token_id", "information"),
                "load_cv": run.mean("cv"),
                "dropped": run.mean("dropped"),
            }
            for seed, run in of_seed.items()
        }
        for arm, of_seed in trained.items()
    }


def values(numbers: Mapping[str, Any], arm: str, key: str) -> dict[int, float]:
    """Returns by seed one of an arm's `numbers`; of "loss" that of all domains together."""
    return {
        int(seed): run["loss"]["all"] if key == "loss" else run[key] for seed, run in numbers[arm].items()
    }


def table(numbers: Mapping[str, Any], what: str) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows, a row a run; `what` names the arms' column."""
    domains = list(next(run["loss"] for of_seed in numbers.values() for run in of_seed.values()))
    header = [what, "seed", *(f"loss, {name}" for name in domains), "domain", "token id", "load cv"]
    rows = [
        [
            arm,
            seed,
            *(f"{run['loss'][name]:.4f}" for name in domains),
            f"{run['domain_information']:.3f}",
            f"{run['token_id_information']:.3f}",
            f"{run['load_cv']:.2f}",
        ]
        for arm, of_seed in numbers.items()
        for seed, run in of_seed.items()
    ]
    return header, rows


def dots(axis: Axes, numbers: Mapping[str, Any], key: str, names: Sequence[str]) -> None:
    """Draws a dot a seed and a line at their mean for each arm, which the axis calls by `names`."""
    for place, arm in enumerate(numbers):
        of_seed = list(values(numbers, arm, key).values())
        axis.plot([place] * len(of_seed), of_seed, "o", alpha=0.7)
        axis.plot([place - 0.2, place + 0.2], [statistics.mean(of_seed)] * 2, color="black")
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.grid(alpha=0.3)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Returns ours minus theirs, seed by seed."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours)]


def spread(values: Sequence[float]) -> str:
    """Returns the mean and what each seed has, as text.

    >>> spread([1.0, 2.0])
    '1.5000 (1.0000, 2.0000)'
    """
    return f"{statistics.mean(values):.4f} ({', '.join(f'{value:.4f}' for value in values)})"


def _read(run_dir: Path) -> Figures:
    """What a finished run has in its results; its routing is recorded once and kept beside them."""
    loss = {name: part["loss"] for name, part in results.read(run_dir).meta["test"].items()}
    file = run_dir / "routing.json"
    if not file.exists():
        recorded = recording.record(run_dir, documents=_TEXTS, rows=32)
        layers = [experts.layer_report(layer, recorded, least=20) for layer in recorded.layers.values()]
        with trec.replacing(file) as opened:
            json.dump(layers, opened)
    return Figures(loss, json.loads(file.read_text()))
