"""How a trained dual encoder is evaluated: BM25 plain and tuned, the dual encoder, and their fusion.

Everything that is chosen (checkpoint, BM25's settings, the fusion's weight) is chosen on dev; the
test split is read once. Writes results.json, per_query.json, runs/*.trec, tables/, plots/, and the
index that `experiments.search` opens. Several processes share the encoding of the corpus, each on its own
devices; the rest is the first one's.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from dual_encoder import retriever, vectors
from dual_encoder.encoding import Encoder
from dual_encoder.retriever import FUSION_DEPTH
from dual_encoder.trained import Trained
from eval import fusion, measures, plots, results, runs, significance, trec
from experiments import encode, opening, run_dirs
from index import exact, lexical, passages
from training import distributed, metrics

if TYPE_CHECKING:
    from experiments.contrastive import Experiment

_SAMPLES = 10_000  # of the randomization test


def evaluate(experiment: Experiment) -> results.Results:
    """Evaluates the run's best checkpoint and prints the table; see the module's docstring."""
    started = time.monotonic()
    # The encoder of the training takes all processes at each call; here they go their own ways.
    encoder = Encoder(experiment.task.model) if distributed.several() else experiment.encoder
    trained = Trained.of_run(
        experiment.run_dir, experiment.task, encoder, experiment.tokenizer, experiment.text
    )
    opening.warn_of_leaks(experiment.task.model, "vector")
    store = _encode_corpus(experiment, trained)
    with distributed.leader_first("the evaluation"):
        if distributed.is_leader():
            _evaluate(experiment, trained, store, started)
    return results.read(experiment.run_dir)


def deepest(names: Sequence[str]) -> int:
    """How many documents a query's ranking must have for these measures; an uncut one gets FUSION_DEPTH."""
    return max(measures.depth(name) or FUSION_DEPTH for name in names)


def _evaluate(experiment: Experiment, trained: Trained, store: vectors.VectorStore, started: float) -> None:
    settings, dataset, run_dir = experiment.evaluation, experiment.dataset, experiment.run_dir
    splits = {"dev": dataset.split(settings.dev_split), "test": dataset.split(settings.test_split)}
    queries = {name: [dataset.queries[q] for q in qrels] for name, qrels in splits.items()}

    depth = max(FUSION_DEPTH, deepest((*settings.measures, settings.tune_measure))) + settings.drop_same_id

    def search_bm25(index: lexical.BM25, split: str) -> measures.Run:
        found = index.search(queries[split], depth)
        return runs.from_rows(
            list(splits[split]), dataset.doc_ids, *found, drop_same_id=settings.drop_same_id
        )

    plain, tuned, chosen = _build_bm25(experiment, splits["dev"], queries["dev"])
    index = exact.build(store.vectors())

    def search_dense(split: str) -> measures.Run:
        vectors_QD, _ = trained.queries(queries[split])
        found = passages.search(lambda k: exact.search(index, vectors_QD, k), store.text_of_row, depth)
        return runs.from_rows(
            list(splits[split]), dataset.doc_ids, *found, drop_same_id=settings.drop_same_id
        )

    found = {
        split: {"bm25": search_bm25(tuned, split), "dual_encoder": search_dense(split)} for split in splits
    }
    weight, _ = fusion.tune_weight(
        found["dev"]["dual_encoder"],
        found["dev"]["bm25"],
        splits["dev"],
        settings.tune_measure,
        settings.fusion_weights,
    )
    for of_split in found.values():
        of_split["hybrid"] = fusion.interpolate(of_split["dual_encoder"], of_split["bm25"], weight)
    test_runs = {"bm25_plain": search_bm25(plain, "test"), **found["test"]}
    per_query = {
        name: measures.evaluate(splits["test"], run, settings.measures) for name, run in test_runs.items()
    }

    retriever.save(run_dir, dataset, tuned, weight)
    for name, run in test_runs.items():
        best = {query_id: _best(hits, settings.run_depth) for query_id, hits in run.items()}
        trec.write_run(run_dir / "runs" / f"{name}.trec", best, name)
    meta = {
        **run_dirs.meta(experiment.config),
        "data": dataset.summary(),
        "corpus_hash": dataset.corpus_hash,
        "best_step": trained.step,
        "bm25": chosen,
        "fusion_weight": weight,
        "parameters": sum(x.size for x in jax.tree.leaves(trained.variables["params"])),
        "wall_seconds": {
            "training": metrics.training_seconds(run_dir),
            "evaluation": round(time.monotonic() - started, 1),
        },
    }
    results.write(run_dir, meta, per_query)
    _report(results.read(run_dir), run_dir)
    _plot(experiment, {name: found["dev"][name] for name in ("bm25", "hybrid")}, splits["dev"])


def _encode_corpus(experiment: Experiment, trained: Trained) -> vectors.VectorStore:
    """Goes on with what an evaluation that was stopped, or experiments.encode, has encoded."""
    folder = retriever.vectors_folder(experiment.run_dir)
    about = encode.about_documents(trained, experiment.config, experiment.dataset)
    with distributed.leader_first("removing old vectors"):
        # Such as those of the best checkpoint of a shorter training.
        if distributed.is_leader() and vectors.differences(folder, about):
            shutil.rmtree(folder.parent)
    share = {"process": jax.process_index(), "processes": jax.process_count()}
    encode.documents(trained, experiment.config, experiment.dataset, folder, **share)
    distributed.wait("encoding the corpus")
    return vectors.VectorStore.open(folder)


def _build_bm25(experiment: Experiment, qrels: measures.Qrels, queries: list[str]):
    """Returns BM25 as the config fixes it (text alone), BM25 tuned on dev, and what was chosen."""
    dataset, grid = experiment.dataset, experiment.evaluation.bm25_grid
    measure, drop_same_id = experiment.evaluation.tune_measure, experiment.evaluation.drop_same_id
    titles, texts = dataset.titles_and_texts()
    plain = lexical.BM25.build(texts, **experiment.evaluation.bm25_plain)
    settings = grid.settings()

    def quality(scores_QK: np.ndarray, rows_QK: np.ndarray) -> float:
        run = runs.from_rows(list(qrels), dataset.doc_ids, scores_QK, rows_QK, drop_same_id=drop_same_id)
        return measures.means(measures.evaluate(qrels, run, [measure]))[measure]

    best = None
    count = len(settings) * len(grid.analyzers)
    print(f"tuning BM25 on {len(queries):,} dev queries: {count} settings", file=sys.stderr, flush=True)
    for analyzer in grid.analyzers.values():
        analyzed = lexical.analyze(texts, analyzer=analyzer, titles=titles)
        setting, table = lexical.tune(
            analyzed,
            queries,
            settings,
            quality,
            k=deepest([measure]) + drop_same_id,
            progress=sys.stderr.isatty(),
        )
        if best is None or table[setting] > best[0]:
            best = table[setting], analyzed, setting
    _, analyzed, setting = best
    chosen = {**dataclasses.asdict(analyzed.vocabulary.analyzer), **setting._asdict()}
    return plain, lexical.BM25.from_analyzed(analyzed, **setting._asdict()), chosen


def _best(hits: dict[str, float], depth: int) -> dict[str, float]:
    return {doc_id: hits[doc_id] for doc_id in measures.rank(hits)[:depth]}


def _report(written: results.Results, run_dir: Path) -> None:
    """Prints the table, each system against BM25 tuned on dev, and writes it to tables/results.md."""
    baseline = written.per_query["bm25"]
    p_values = {
        system: {
            name: significance.randomization_test(values, baseline[name], samples=_SAMPLES)
            for name, values in columns.items()
        }
        for system, columns in written.per_query.items()
        if system != "bm25"
    }
    table = results.table(written, baseline="bm25", p_values=p_values)
    with trec.replacing(run_dir / "tables" / "results.md") as file:
        file.write(table + "\n")
    queries = len(next(iter(baseline.values())))
    print(
        f"\n{queries:,} test queries; in brackets the difference from bm25 and its p (randomization test)\n"
    )
    print(table)


def _plot(experiment: Experiment, dev_runs: Mapping[str, measures.Run], qrels: measures.Qrels) -> None:
    best_measure = experiment.config["schedule"]["best_measure"]
    name = best_measure.removeprefix("dev/")
    levels = {}
    for system, run in dev_runs.items():
        levels[system] = measures.means(measures.evaluate(qrels, run, [name]))[name]
    file = experiment.run_dir / "plots" / "training.png"
    file.parent.mkdir(exist_ok=True)
    dataset = experiment.dataset
    title = f"{dataset.name}: {len(qrels):,} dev queries, {len(dataset.doc_ids):,} documents"
    plots.quality_over_training(file, metrics.read(experiment.run_dir), best_measure, levels, title=title)
    print(f"\nwritten: {experiment.run_dir}/results.json, per_query.json, runs/, tables/, {file}")
