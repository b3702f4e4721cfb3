"""Search the indexes of older runs with the queries of newer ones: which model can replace which, with no
index made anew.

The arguments are run directories in the order of their training, each evaluated (so that its index is there)
on the same collection, with vectors of one width. The table has the new model's queries in rows and the old
model's index in columns; a cell is compatible where it is above the index's own, on the diagonal.

Examples:
  python -m experiments.compatibility runs/model1 runs/model2 runs/model3
  python -m experiments.compatibility runs/model1 runs/model2 --measure=recall@100 --json
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from dual_encoder import retriever
from dual_encoder.trained import Trained
from dual_encoder.vectors import VectorStore
from eval import compatibility, measures, runs
from eval.results import markdown_table
from experiments import cli, run_dirs
from experiments.settings import deepest
from index import exact, passages
from training.build import build


def main() -> None:
    """Entry point of `retrievax-compatibility`."""
    command = cli.Command(__doc__)
    given = command.arguments("RUN", "run directories, the oldest model first.", least=2)
    measure = command.string("measure", "ndcg@10", "What is measured on the test split.")
    as_json = command.boolean("json", "Print one JSON object instead of a table.")

    def compare() -> None:
        with cli.expecting(ValueError):
            found = of_runs(given.values, measure.value)
        print(json.dumps(found, indent=1) if as_json.value else "\n".join(lines(found)))

    command.run(compare)


def of_runs(run_dirs_M: Sequence[str], measure: str) -> dict[str, Any]:
    """Returns runs, measure, the matrix [M, M] (None above the diagonal), average compatibility and accuracy.

    Raises:
      UsageError: the runs are of different collections, or their vectors of different widths.
      CheckpointError, DataError: a run has no checkpoint or no index.
      ValueError: an unknown measure.
    """
    config = run_dirs.load_config(run_dirs_M[0])
    dataset = build(config["data"], "config.data")
    qrels = dataset.split(config["evaluation"]["test_split"])
    drop = bool(config["evaluation"].get("drop_same_id", False))
    texts = [dataset.queries[query_id] for query_id in qrels]
    depth = deepest([measure]) + drop
    stores = [VectorStore.open(retriever.vectors_folder(run)) for run in run_dirs_M]
    for run, store in zip(run_dirs_M, stores, strict=True):
        if store.ids != list(dataset.doc_ids):
            raise cli.UsageError(f"{run} has another collection than {run_dirs_M[0]}")
        if store.manifest["width"] != stores[0].manifest["width"]:
            raise cli.UsageError(
                f"{run} has vectors of {store.manifest['width']}; allowed: {stores[0].manifest['width']}, as "
                f"{run_dirs_M[0]}"
            )
    matrix = np.full((len(stores), len(stores)), np.nan)
    for i, run in enumerate(run_dirs_M):
        vectors_QD, _ = Trained.load(run, run_dirs.load_config(run)).queries(texts)
        for j, store in enumerate(stores[: i + 1]):
            index = exact.build(store.vectors())
            search = lambda k: exact.search(index, vectors_QD, k)  # noqa: B023
            found = passages.search(search, store.text_of_row, depth)
            ranked = runs.from_rows(list(qrels), dataset.doc_ids, *found, drop_same_id=drop)
            matrix[i, j] = measures.means(measures.evaluate(qrels, ranked, [measure]))[measure]
    return {
        "runs": list(run_dirs_M),
        "measure": measure,
        "matrix": [[None if np.isnan(x) else float(x) for x in row] for row in matrix],
        "average_compatibility": compatibility.average_compatibility(matrix),
        "average_accuracy": compatibility.average_accuracy(matrix),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Returns the table as text; a cell that is not compatible has a minus after it."""
    own = [row[number] for number, row in enumerate(found["matrix"])]

    def shown(i: int, j: int, value: float | None) -> str:
        if value is None:
            return ""
        return f"{value:.4f}" + (" -" if i > j and not value > own[j] else "")

    rows = [
        [run, *(shown(i, j, value) for j, value in enumerate(row))]
        for i, (run, row) in enumerate(zip(found["runs"], found["matrix"], strict=True))
    ]
    return [
        f"{found['measure']} on test: queries of the row's model, index of the column's; - where the "
        "index's own model does as well",
        "",
        markdown_table(["queries \\ index", *found["runs"]], rows),
        "",
        f"average compatibility {found['average_compatibility']:.3f}, average {found['measure']} "
        f"{found['average_accuracy']:.4f}",
    ]


if __name__ == "__main__":
    main()
