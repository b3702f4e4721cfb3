"""How a trained cross-encoder is evaluated: BM25, plain and tuned, its best documents scored anew, and both.

Everything that is chosen (checkpoint, BM25's settings, the fusion's weight) is chosen on dev; the test split
is read once. `cross_encoder` is the tuned BM25's ranking with its first documents in the order of the
cross-encoder's scores, `hybrid` in that of both scores, interpolated. Writes results.json, per_query.json,
runs/*.trec, tables/ and plots/.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import jax

from cross_encoder.trained import Trained
from eval import fusion, measures, results, runs
from experiments import baselines, opening, reports, rerank, run_dirs
from experiments.settings import deepest
from index import lexical
from training import distributed, metrics

if TYPE_CHECKING:
    from experiments.cross_encoder import Experiment

SYSTEM = "cross_encoder"


def evaluate(experiment: Experiment) -> results.Results:
    """Evaluates the run's best checkpoint and prints the table; see the module's docstring."""
    opening.warn_of_leaks(experiment.task.model, "score")
    with distributed.leader_first("the evaluation"):
        if distributed.is_leader():
            _evaluate(experiment, time.monotonic())
    return results.read(experiment.run_dir)


def _evaluate(experiment: Experiment, started: float) -> None:
    settings, dataset, run_dir = experiment.evaluation, experiment.dataset, experiment.run_dir
    scorer = experiment.scorer
    if distributed.several():  # that of the training takes all processes at each call
        scorer = type(scorer)(experiment.task.model, length=experiment.text.length)
    trained = Trained.of_run(run_dir, experiment.task, scorer, experiment.tokenizer, experiment.text)
    splits = {"dev": dataset.split(settings.dev_split), "test": dataset.split(settings.test_split)}
    queries = {name: [dataset.queries[q] for q in qrels] for name, qrels in splits.items()}
    depth = max(settings.depth, deepest((*settings.measures, settings.tune_measure))) + settings.drop_same_id
    plain, tuned, chosen = baselines.bm25(dataset, settings, splits["dev"], queries["dev"])

    def search(index: lexical.BM25, split: str) -> measures.Run:
        found = index.search(queries[split], depth)
        return runs.from_rows(
            list(splits[split]), dataset.doc_ids, *found, drop_same_id=settings.drop_same_id
        )

    first = {split: search(tuned, split) for split in splits}
    heads = {split: rerank.head(run, settings.depth) for split, run in first.items()}
    scored = {split: rerank.score(trained, dataset, heads[split]) for split in splits}

    def interpolated(split: str, weight: float) -> measures.Run:
        return rerank.followed(fusion.interpolate(scored[split], heads[split], weight), first[split])

    weight, _ = fusion.tune_weight(
        scored["dev"], heads["dev"], splits["dev"], settings.tune_measure, settings.fusion_weights
    )
    reranked = {split: rerank.followed(scored[split], first[split]) for split in splits}
    hybrid = {split: interpolated(split, weight) for split in splits}
    test_runs = {
        "bm25_plain": search(plain, "test"),
        "bm25": first["test"],
        SYSTEM: reranked["test"],
        "hybrid": hybrid["test"],
    }
    per_query = {
        name: measures.evaluate(splits["test"], run, settings.measures) for name, run in test_runs.items()
    }
    reports.write_runs(run_dir, test_runs, settings.run_depth)
    meta = {
        **run_dirs.meta(experiment.config),
        "data": dataset.summary(),
        "corpus_hash": dataset.corpus_hash,
        "best_step": trained.step,
        "bm25": chosen,
        "depth": settings.depth,
        "fusion_weight": weight,
        "parameters": sum(x.size for x in jax.tree.leaves(trained.variables["params"])),
        "wall_seconds": {
            "training": metrics.training_seconds(run_dir),
            "evaluation": round(time.monotonic() - started, 1),
        },
    }
    results.write(run_dir, meta, per_query)
    reports.show(run_dir)
    others = {"bm25": first["dev"], "hybrid": hybrid["dev"]}
    reports.plot_training(run_dir, experiment.config, dataset, splits["dev"], others)
