"""How a trained query generator is evaluated: how likely it finds the test queries, and whether the queries
that it draws lead back to their documents.

Writes results.json, per_query.json and tables/. A query is drawn for each document that a test query is for,
and BM25 searches for it; the test queries themselves stand beside, as what can be expected of BM25:

    {"meta": {..., "test": {"loss": ..., "perplexity": ..., ...}},
     "query_generator": {"log_likelihood": ..., "words": ...},   of each test pair, in nats and subwords
     "generated_queries": {"hits@1": ..., "hits@10": ...},       of each document
     "test_queries": {"hits@1": ..., "hits@10": ...}}            of each test pair

The checkpoint is chosen on dev; test is read once. Documents that no training query is for stand apart too.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import jax
import numpy as np

from corpora.batches import Pairs
from eval import measures, results, runs, trec
from experiments import opening, round_trip, run_dirs
from generative_retrieval.query_sampling import Generator, texts
from generative_retrieval.task import smallest_batch
from language_model.scoring import perplexity
from training import distributed, metrics, trained
from training import mesh as meshes

if TYPE_CHECKING:
    from experiments.query_generator import Experiment

SYSTEM, DRAWN, ASKED = "query_generator", "generated_queries", "test_queries"
_SHOWN = 5  # queries that are printed


def evaluate(experiment: Experiment) -> results.Results:
    """Evaluates the run's best checkpoint and prints the table; see the module's docstring."""
    started = time.monotonic()
    of, run_dir, settings = experiment.training, experiment.run_dir, experiment.evaluation
    pairs = experiment.pairs(settings.test_split)
    names = [
        f"{pairs.query_ids[query]} {experiment.dataset.doc_ids[document]}"
        for query, document in zip(pairs.query_rows, pairs.document_rows, strict=True)
    ]
    step, params, state = trained.best(
        run_dir, experiment.task, smallest_batch(experiment.task.model), of.mesh, of.layout
    )
    opening.warn_of_leaks(experiment.task.model, "query")
    found_N, words_N = experiment.score(params, state, pairs, title="scoring test")
    host = meshes.to_host(experiment.task.variables(params, state))
    with distributed.leader_first("the evaluation"):
        if distributed.is_leader():
            rows = np.unique(pairs.document_rows)
            drawn = _draw(experiment, host, rows)
            systems = {
                SYSTEM: {
                    "log_likelihood": dict(zip(names, found_N.tolist(), strict=True)),
                    "words": dict(zip(names, words_N.astype(float).tolist(), strict=True)),
                },
                **_round_trips(experiment, pairs, names, rows, drawn),
            }
            loss = -float(found_N.sum()) / int(words_N.sum())
            meta = {
                **run_dirs.meta(experiment.config),
                "data": experiment.dataset.summary(),
                "corpus_hash": experiment.dataset.corpus_hash,
                "best_step": step,
                "parameters": sum(x.size for x in jax.tree.leaves(params)),
                "test": {"loss": loss, "perplexity": perplexity(loss), **_unseen(experiment, rows, systems)},
                "wall_seconds": {
                    "training": metrics.training_seconds(run_dir),
                    "evaluation": round(time.monotonic() - started, 1),
                },
            }
            results.write(run_dir, meta, systems)
            _report(experiment, rows, drawn, meta["test"])
    return results.read(run_dir)


def _draw(experiment: Experiment, variables, rows_N: np.ndarray) -> list[str]:
    """A query of each document."""
    settings, text = experiment.evaluation, experiment.text
    devices = meshes.data_mesh(jax.local_devices())
    generator = Generator(
        experiment.task.model,
        devices,
        experiment.training.layout,
        settings.sampling,
        queries=1,
        document_length=text.document_length,
        query_length=text.query_length,
        seed=experiment.config["seed"],
        batch_size=settings.batch_size,
        allow_batch_dependence=True,  # of which there was a warning
    )
    table = text.documents(experiment.tokenizer, experiment.dataset.documents.read(rows_N))
    made_N1T = generator(meshes.replicate(variables, devices), table, rows_N)
    return [queries[0] for queries in texts(experiment.tokenizer, made_N1T)]


def _round_trips(
    experiment: Experiment, pairs: Pairs, names: list[str], rows_N: np.ndarray, drawn: list[str]
) -> dict[str, measures.PerQuery]:
    """What BM25 finds for the queries that are drawn, by document, and for those of test, by pair."""
    dataset, settings = experiment.dataset, experiment.evaluation
    search = round_trip.bm25(dataset, **settings.bm25)
    depth = max(measures.depth(name) for name in settings.measures)

    def of(keys: list[str], queries: list[str], documents) -> measures.PerQuery:
        ids = [dataset.doc_ids[row] for row in documents]
        qrels = {key: {doc_id: 1} for key, doc_id in zip(keys, ids, strict=True)}
        found_QK = search(queries, depth)
        falling_QK = -np.arange(depth, dtype=np.float32)[None].repeat(len(queries), axis=0)
        run = runs.from_rows(keys, dataset.doc_ids, falling_QK, found_QK)
        return measures.evaluate(qrels, run, settings.measures)

    asked = [dataset.queries[pairs.query_ids[row]] for row in pairs.query_rows]
    return {
        DRAWN: of([dataset.doc_ids[row] for row in rows_N], drawn, rows_N),
        ASKED: of(names, asked, pairs.document_rows),
    }


def _unseen(experiment: Experiment, rows_N: np.ndarray, systems) -> dict[str, float]:
    """The measures of drawn queries, of documents that no training query is for."""
    trained_on = experiment.pairs(experiment.evaluation.train_split).document_rows
    unseen = [experiment.dataset.doc_ids[row] for row in rows_N if row not in set(trained_on.tolist())]
    found = {"documents": len(rows_N), "documents_without_training_queries": len(unseen)}
    if unseen:
        found["without_training_queries"] = {
            name: float(np.mean([values[doc_id] for doc_id in unseen]))
            for name, values in systems[DRAWN].items()
        }
    return found


def _report(experiment: Experiment, rows_N: np.ndarray, drawn: list[str], test) -> None:
    run_dir = experiment.run_dir
    written = results.read(run_dir)
    found = {system: written.means[system] for system in (DRAWN, ASKED)}
    table = results.table(dataclasses.replace(written, means=found))
    with trec.replacing(run_dir / "tables" / "results.md") as file:
        file.write(table + "\n")
    print(f"\ntest: loss {test['loss']:.4f}, perplexity {test['perplexity']:.2f}; queries that were drawn:")
    shown = np.linspace(0, len(rows_N), min(_SHOWN, len(rows_N)), endpoint=False).astype(int)
    for at in shown:
        print(f"  {experiment.dataset.doc_ids[rows_N[at]]}: {drawn[at]}")
    print(f"\nwhether BM25 finds the document of a query\n\n{table}")
    print(f"\nwritten: {run_dir}/results.json, per_query.json, tables/")
