"""Adapt a run's vectors to its training queries without its encoder: e + A (B e), see dual_encoder.adapter.

The run has been evaluated, so that the vectors of its documents are there; queries are encoded once. For each
rank adapters are trained, those of the epoch that is best on dev are kept, and they are measured on test
beside the vectors as they were. --output gets adapters/rank-<R>.npz, results.json and per_query.json, which
experiments.compare and experiments.table read; experiments.search takes a file of adapters with --adapter.

Examples:
  python -m experiments.adapt --workdir=runs/mine --output=runs/mine-adapted
  python -m experiments.adapt --workdir=runs/mine --output=runs/both --ranks=4,16,64 --sides=both --margin=0.1
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corpora import batches
from dual_encoder import adapter, retriever
from dual_encoder.vectors import are_unit
from eval import measures, results, runs
from experiments import cli, run_dirs
from experiments.settings import deepest
from index import exact
from training.build import build
from training.progress import Progress

MEASURES = ("ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "recall@1", "recall@3", "recall@5")
_FROZEN = "dual_encoder"


def main() -> None:
    """Entry point of `retrievax-adapt`."""
    command = cli.Command(__doc__)
    workdir = command.string("workdir", "runs/quickstart", "The run whose vectors are adapted.")
    output = command.string("output", None, "The folder to write.")
    ranks = command.string("ranks", "16", "Ranks, joined by commas: one adapter each.")
    sides = command.string("sides", "query", "What is adapted: query (the index stays), or both.")
    negatives = command.integer("negatives", 16, "Nearest other documents of a query.", lower_bound=1)
    epochs = command.integer("epochs", 10, "Passes over the training queries.", lower_bound=1)
    margin = command.string("margin", None, "Of a triplet loss in the place of InfoNCE.")
    seed = command.integer("seed", 0, "Of the adapters and the order.", lower_bound=0)

    def adapt() -> None:
        if output.value is None:
            raise cli.UsageError("--output is not given; it is the folder to write")
        with cli.expecting(ValueError):
            all_settings = [
                adapter.Settings(
                    rank=int(rank),
                    sides=sides.value,
                    negatives=negatives.value,
                    epochs=epochs.value,
                    margin=None if margin.value is None else float(margin.value),
                    seed=seed.value,
                )
                for rank in cli.split(ranks.value)
            ]
            found = of_run(workdir.value, output.value, all_settings)
        systems = list(found.means)
        rows = [[name, *(f"{found.means[name][measure]:.4f}" for measure in MEASURES)] for name in systems]
        print(f"\n{results.markdown_table(['system', *MEASURES], rows)}\n\nwritten: {output.value}")

    command.run(adapt)


def of_run(run_dir: str, output: str, all_settings: Sequence[adapter.Settings]) -> results.Results:
    """Trains and measures adapters of a run; see the module.

    Raises:
      UsageError: the run has several vectors a document.
      CheckpointError, DataError: it has no checkpoint, or no index.
      ValueError: a rank above the width of the vectors.
    """
    config = run_dirs.load_config(run_dir)
    dataset = build(config["data"], "config.data")
    print(dataset.summary(), flush=True)
    splits = {name: config["evaluation"][f"{name}_split"] for name in ("train", "dev", "test")}
    trained, store = retriever.load_indexed(run_dir, texts_hash=dataset.corpus_hash)
    if len(store) != len(store.ids):
        raise cli.UsageError(f"{run_dir} has several vectors a document; allowed: text.passage_stride 0")
    document_ND = store.vectors()
    unit = are_unit(document_ND)
    pairs = batches.training_pairs(dataset, splits["train"])
    qrels = {name: dataset.split(splits[name]) for name in ("dev", "test")}
    ids = {"train": pairs.query_ids, **{name: list(of) for name, of in qrels.items()}}
    vectors = {
        name: trained.queries([dataset.queries[query_id] for query_id in of])[0] for name, of in ids.items()
    }
    drop = bool(config["evaluation"].get("drop_same_id", False))

    def measured(split: str, adapters: adapter.Adapters, names: Sequence[str]) -> measures.PerQuery:
        index = exact.build(np.asarray(adapter.adapted(adapters, "document", document_ND, unit=unit)))
        queries_QD = np.asarray(adapter.adapted(adapters, "query", vectors[split], unit=unit))
        found = exact.search(index, queries_QD, deepest(names) + drop)
        ranked = runs.from_rows(ids[split], dataset.doc_ids, *map(np.asarray, found), drop_same_id=drop)
        return measures.evaluate(qrels[split], ranked, names)

    folder = Path(output)
    (folder / "adapters").mkdir(parents=True, exist_ok=True)
    per_query = {_FROZEN: measured("test", {}, MEASURES)}
    tune = config["evaluation"]["tune_measure"]
    chosen: dict[str, Any] = {}
    for settings in all_settings:
        best: tuple[float, int, adapter.Adapters] | None = None
        progress = Progress(settings.epochs, unit="epoch", title=f"rank {settings.rank}")

        def look(epoch: int, adapters: adapter.Adapters) -> None:
            nonlocal best
            value = measures.means(measured("dev", adapters, [tune]))[tune]
            if best is None or value > best[0]:
                best = value, epoch, adapters
            progress.update(epoch)  # noqa: B023

        adapter.train(vectors["train"], document_ND, pairs.positives, settings, unit=unit, report=look)
        progress.close()
        name = f"rank-{settings.rank}"
        np.savez(folder / "adapters" / f"{name}.npz", **adapter.arrays(best[2]))
        per_query[name] = measured("test", best[2], MEASURES)
        chosen[name] = {**dataclasses.asdict(settings), "epoch": best[1], f"dev/{tune}": best[0]}
    meta = {
        **run_dirs.meta(config),
        "run": str(run_dir),
        "data": dataset.summary(),
        "corpus_hash": dataset.corpus_hash,
        "adapters": chosen,
    }
    results.write(folder, meta, per_query)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return results.read(folder)


if __name__ == "__main__":
    main()
