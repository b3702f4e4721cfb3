"""How a trained generative retriever is evaluated: BM25 plain and tuned, the retriever, and their fusion.

Everything that is chosen (checkpoint, BM25's settings, the fusions' weights) is chosen on dev; the test
split is read once. Writes results.json, per_query.json, runs/*.trec, tables/ and plots/. Several processes
share the search, each on its own devices; the rest is the first one's.

Where the model shares its encoder with a dual encoder, as `generative_retrieval.joint` has it, that one is a
system too, `dense`, and `hybrid_dense` its fusion with `generative`.

Where documents were added to another run's, two systems more say what the training made of it: `before`, the
other run's model, which finds the earlier documents alone; and `ids_only`, that model with the ids of the
added documents, which it has not been trained on. tables/added.md has queries for earlier documents and for
added ones apart.

No system finds a document that config.docids.removed names; one that is judged relevant counts as not found.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from dual_encoder.encoding import Encoder
from eval import fusion, measures, results, runs, trec
from experiments import baselines, generative_docids, opening, reports, run_dirs
from experiments.settings import FUSION_DEPTH, deepest
from generative_retrieval import indexing, trained
from index import exact, lexical
from training import distributed, metrics
from training.files import plain

if TYPE_CHECKING:
    from experiments.generative import Experiment

SYSTEM = "generative"
FUSIONS = {"hybrid_dense": "dense", "hybrid": "bm25"}  # of the generative system with these


def evaluate(experiment: Experiment) -> results.Results:
    """Evaluates the run's best checkpoint and prints the table; see the module's docstring."""
    started = time.monotonic()
    of = experiment.training
    step, variables = trained.best(experiment.run_dir, experiment.task, of.mesh, of.layout)
    opening.warn_of_leaks(experiment.task.model, "results")
    found, seconds = {}, {}
    for name in ("dev", "test"):
        query_ids = list(splits(experiment)[name])
        table = experiment.query_tokens(query_ids)
        before = time.monotonic()
        run = experiment.search(variables, query_ids, table, title=f"searching {name}")
        found[name], seconds[name] = {SYSTEM: run}, time.monotonic() - before
    if hasattr(experiment.task.model, "encode_document"):
        for name, run in _dense(experiment, variables).items():
            found[name]["dense"] = run
    found["test"] |= _without_training(experiment)
    with distributed.leader_first("the evaluation"):
        if distributed.is_leader():
            about = {
                "best_step": step,
                "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
                # dev has paid for the compilation
                "milliseconds_per_query": round(1e3 * seconds["test"] / len(found["test"][SYSTEM]), 3),
            }
            _evaluate(experiment, found, about, started)
    return results.read(experiment.run_dir)


def splits(experiment: Experiment) -> dict[str, measures.Qrels]:
    """Returns the judgements that a run is chosen and judged by."""
    of = experiment.evaluation
    return {"dev": experiment.dataset.split(of.dev_split), "test": experiment.dataset.split(of.test_split)}


def _dense(experiment: Experiment, variables: Any) -> dict[str, measures.Run]:
    """What dev and test queries find by the vectors of a shared encoder: of documents' beginnings."""
    of, length = experiment.training, experiment.text.length
    encoder = Encoder(experiment.task.model, mesh=of.mesh, activations=of.layout.activations)
    source = experiment.source(np.arange(len(experiment.dataset.doc_ids)))
    texts = indexing.first_tokens(source).tokens
    index = exact.build(encoder.documents(variables, texts, length, title="encoding documents"))
    drop_same_id, found = experiment.evaluation.drop_same_id, {}
    for name, qrels in splits(experiment).items():
        queries = experiment.query_tokens(list(qrels))
        depth = min(FUSION_DEPTH, len(texts))
        rows = exact.search(index, encoder.queries(variables, queries, length), depth)
        run = runs.from_rows(list(qrels), experiment.dataset.doc_ids, *rows, drop_same_id=drop_same_id)
        found[name] = experiment.without_removed(run)
    return found


def _without_training(experiment: Experiment) -> dict[str, measures.Run]:
    """What test queries find with the model of the run whose docids are extended, if it has the same one."""
    earlier, of = experiment.docids_spec.extends, experiment.training
    if not earlier or run_dirs.load_config(earlier)["task"] != plain(experiment.config["task"]):
        return {}
    _, variables = trained.best(earlier, experiment.task, of.mesh, of.layout)
    query_ids = list(splits(experiment)["test"])
    table = experiment.query_tokens(query_ids)
    live_N = np.ones(len(experiment.docids), bool)
    live_N[experiment.added_rows] = False
    return {
        "before": experiment.search(variables, query_ids, table, live_N=live_N),
        "ids_only": experiment.search(variables, query_ids, table),
    }


def _evaluate(
    experiment: Experiment, found: dict[str, dict[str, measures.Run]], about: dict[str, Any], started: float
) -> None:
    settings, dataset, run_dir = experiment.evaluation, experiment.dataset, experiment.run_dir
    qrels = splits(experiment)
    queries = {name: [dataset.queries[q] for q in judged] for name, judged in qrels.items()}
    depth = max(FUSION_DEPTH, deepest((*settings.measures, settings.tune_measure))) + settings.drop_same_id

    def search_bm25(index: lexical.BM25, split: str) -> measures.Run:
        rows = index.search(queries[split], depth)
        run = runs.from_rows(list(qrels[split]), dataset.doc_ids, *rows, drop_same_id=settings.drop_same_id)
        return experiment.without_removed(run)

    plain, tuned, chosen = baselines.bm25(dataset, settings, qrels["dev"], queries["dev"])
    for split, of_split in found.items():
        of_split["bm25"] = search_bm25(tuned, split)
    weights = {}
    for name, other in FUSIONS.items():
        if other not in found["dev"]:
            continue
        pair = found["dev"][SYSTEM], found["dev"][other]
        weights[name], _ = fusion.tune_weight(
            *pair, qrels["dev"], settings.tune_measure, settings.fusion_weights
        )
        for of_split in found.values():
            of_split[name] = fusion.interpolate(of_split[SYSTEM], of_split[other], weights[name])
    test_runs = {"bm25_plain": search_bm25(plain, "test"), **found["test"]}
    per_query = {
        name: measures.evaluate(qrels["test"], run, settings.measures) for name, run in test_runs.items()
    }
    reports.write_runs(run_dir, test_runs, settings.run_depth)
    meta = {
        **run_dirs.meta(experiment.config),
        "data": dataset.summary(),
        "corpus_hash": dataset.corpus_hash,
        **about,
        "docids": generative_docids.summary(experiment.docids),
        "beams": settings.beams,
        "bm25": chosen,
        "fusion_weight": weights["hybrid"],
        **({"fusion_weight_dense": weights["hybrid_dense"]} if "hybrid_dense" in weights else {}),
        "wall_seconds": {
            "training": metrics.training_seconds(run_dir),
            "evaluation": round(time.monotonic() - started, 1),
        },
    }
    if experiment.docids_spec.extends:
        meta["by_documents"] = _by_documents(experiment, qrels["test"], per_query)
    results.write(run_dir, meta, per_query)
    reports.show(run_dir)
    if experiment.docids_spec.extends:
        _show_added(run_dir, meta["by_documents"])
    others = {name: found["dev"][name] for name in ("bm25", "hybrid")}
    reports.plot_training(run_dir, experiment.config, dataset, qrels["dev"], others)


def _by_documents(
    experiment: Experiment, qrels: measures.Qrels, per_query: dict[str, measures.PerQuery]
) -> dict[str, Any]:
    """The means of the queries for earlier documents, and for added ones, by system."""
    found: dict[str, Any] = {}
    for part, query_ids in experiment.by_documents(qrels).items():
        found[part] = {"queries": len(query_ids)}
        for system, columns in per_query.items() if query_ids else ():
            found[part][system] = {
                name: statistics.fmean(values[query_id] for query_id in query_ids)
                for name, values in columns.items()
            }
    return found


def _show_added(run_dir: Path, parts: dict[str, Any]) -> None:
    rows = [
        [part, f"{means['queries']:,}", system, *(f"{value:.4f}" for value in values.values())]
        for part, means in parts.items()
        for system, values in means.items()
        if system != "queries"
    ]
    names = next(list(values) for means in parts.values() for s, values in means.items() if s != "queries")
    table = results.markdown_table(["documents", "queries", "system", *names], rows)
    with trec.replacing(run_dir / "tables" / "added.md") as file:
        file.write(table + "\n")
    print(f"\nby the documents that queries are for\n\n{table}")
