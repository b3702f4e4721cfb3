"""What a run's dual encoder is worth when it stops after fewer layers, and by fewer numbers of its vectors.

For a run of dual_encoder.two_dimensional, or any whose encoder has several layers: each number of layers is
encoded at its own price (early exit), and searched by each width. The table has layers in rows and widths in
columns, with texts encoded a second; layers.json in the run has the same.

Examples:
  python -m experiments.layer_grid --workdir=runs/two_dimensional --widths=16,32,64
  python -m experiments.layer_grid --workdir=runs/two_dimensional --measure=recall@100 --json
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dual_encoder.attention_poolers import AllLayers
from dual_encoder.encoding import Encoder
from dual_encoder.towers import DualEncoder
from dual_encoder.trained import Trained, task_of
from dual_encoder.two_dimensional import shortened
from dual_encoder.vectors import are_unit
from eval import measures, runs
from eval.results import markdown_table
from experiments import cli, run_dirs
from experiments.settings import deepest
from index import exact, funnel, passages
from training.build import build

_TIMED = 2_048  # documents that are encoded a second time, to be timed


def main() -> None:
    """Entry point of `retrievax-layer-grid`."""
    command = cli.Command(__doc__)
    workdir = command.string("workdir", "runs/quickstart", "The run.")
    widths = command.string("widths", None, "Numbers of a vector, joined by commas; all of them come last.")
    measure = command.string("measure", "ndcg@10", "What is measured on the test split.")
    as_json = command.boolean("json", "Print one JSON object instead of a table.")

    def grid() -> None:
        with cli.expecting(ValueError):
            found = of_run(
                workdir.value, [int(width) for width in cli.split(widths.value) or ()], measure.value
            )
        print(json.dumps(found, indent=1) if as_json.value else "\n".join(lines(found)))

    command.run(grid)


def of_run(run_dir: str, widths: Sequence[int], measure: str) -> dict[str, Any]:
    """Returns measure, widths, and by number of layers the measure at each width and texts a second; of what
    is done so far, layers.json in the run has the same.

    Where the towers differ in depth, both stop after the same layers, up to those of the shallower.

    Raises:
      CheckpointError: the run has no checkpoint.
      ValueError: an encoder without layers, a pooler that reads all of them, an unknown measure, or a width
        out of range.
    """
    config = run_dirs.load_config(run_dir)
    model = task_of(config).model
    most = _layers(run_dir, model)
    dataset = build(config["data"], "config.data")
    qrels = dataset.split(config["evaluation"]["test_split"])
    drop = bool(config["evaluation"].get("drop_same_id", False))
    texts, depth = [dataset.queries[query_id] for query_id in qrels], deepest([measure]) + drop
    whole = Trained.load(run_dir, config)
    widths = [*widths, whole.width]
    if widths != sorted(set(widths)) or widths[0] < 1:
        raise ValueError(f"--widths is {widths[:-1]}; allowed: ascending, 1 to {whole.width - 1}")
    sample = list(dataset.documents.read(np.arange(min(_TIMED, len(dataset.doc_ids)))))
    found = {"measure": measure, "widths": widths, "grid": []}
    for layers in range(1, most + 1):
        shorter, variables = shortened(model, whole.variables, layers)
        encoder = Encoder(shorter)
        trained = dataclasses.replace(whole, encoder=encoder, variables=encoder.place(variables))
        trained.documents(sample)  # compiles
        started = time.perf_counter()
        trained.documents(sample)
        rate = len(sample) / (time.perf_counter() - started)
        document_RD, text_of_row_R = trained.documents(dataset.documents)
        query_QD, _ = trained.queries(texts)
        unit = are_unit(document_RD)
        values = []
        for width in widths:
            cut = lambda x_ND: funnel.cut(x_ND, width, unit=unit)  # noqa: B023
            index = exact.build(cut(document_RD))
            search = lambda k: exact.search(index, cut(query_QD), k)  # noqa: B023
            hits = passages.search(search, text_of_row_R, depth)
            ranked = runs.from_rows(list(qrels), dataset.doc_ids, *hits, drop_same_id=drop)
            values.append(measures.means(measures.evaluate(qrels, ranked, [measure]))[measure])
        found["grid"].append({"layers": layers, "texts_per_second": round(rate, 1), "values": values})
        (Path(run_dir) / "layers.json").write_text(json.dumps(found, indent=1))
        print(f"{layers} layers are done", file=sys.stderr, flush=True)
    return found


def _layers(run_dir: str, model: DualEncoder) -> int:
    """How many layers both encoders have."""
    towers = (model.query, model.document)
    if any(isinstance(tower.pooler, AllLayers) for tower in towers):
        raise ValueError(f"{run_dir}: its pooler is AllLayers; allowed: one that reads the last layer alone")
    most = min(getattr(tower.encoder, "num_layers", 0) for tower in towers)
    if not most:
        raise ValueError(f"{run_dir}: its encoder has no layers to stop after")
    return most


def lines(found: dict[str, Any]) -> list[str]:
    """Returns the table as text."""
    rows = [
        [str(row["layers"]), *(f"{value:.4f}" for value in row["values"]), f"{row['texts_per_second']:,.0f}"]
        for row in found["grid"]
    ]
    header = ["layers", *(f"{width} numbers" for width in found["widths"]), "texts/s"]
    return [
        f"{found['measure']} on test, by layers and numbers of a vector",
        "",
        markdown_table(header, rows),
    ]


if __name__ == "__main__":
    main()
