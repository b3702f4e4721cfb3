"""How a trained dual encoder is evaluated: BM25 plain and tuned, the dual encoder, and their fusion.

Everything that is chosen (checkpoint, BM25's settings, the fusion's weight) is chosen on dev; the
test split is read once. Without a dev split nothing is chosen, which is said. Writes results.json,
per_query.json, runs/*.trec, tables/, plots/, and the index that `experiments.search` opens. Several processes
share the encoding of the corpus, each on its own devices; the rest is the first one's.
"""

from __future__ import annotations

import functools
import shutil
import time
from typing import TYPE_CHECKING

import jax

from dual_encoder import retriever, vectors
from dual_encoder.encoding import Encoder
from dual_encoder.retriever import FUSION_DEPTH
from dual_encoder.trained import Trained
from eval import fusion, measures, results, runs
from experiments import baselines, encode, opening, reports, run_dirs, widths
from experiments.settings import deepest
from index import exact, lexical, passages
from training import distributed, metrics

if TYPE_CHECKING:
    from experiments import contrastive, published

    Experiment = contrastive.Experiment | published.Experiment

_UNTUNED_WEIGHT = 0.5  # of the dual encoder in the fusion


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


def _evaluate(experiment: Experiment, trained: Trained, store: vectors.VectorStore, started: float) -> None:
    settings, dataset, run_dir = experiment.evaluation, experiment.dataset, experiment.run_dir
    named = {"dev": settings.dev_split, "test": settings.test_split}
    splits = {name: dataset.split(split) for name, split in named.items() if split}
    queries = {name: [dataset.queries[q] for q in qrels] for name, qrels in splits.items()}

    depth = max(FUSION_DEPTH, deepest((*settings.measures, settings.tune_measure))) + settings.drop_same_id

    def search_bm25(index: lexical.BM25, split: str) -> measures.Run:
        found = index.search(queries[split], depth)
        return runs.from_rows(
            list(splits[split]), dataset.doc_ids, *found, drop_same_id=settings.drop_same_id
        )

    if "dev" in splits:
        plain, tuned, chosen = baselines.bm25(dataset, settings, splits["dev"], queries["dev"])
    else:
        plain, tuned, chosen = baselines.untuned(dataset, settings)
        print(
            f"there is no dev split: BM25 has the first setting of its grid, and the dual encoder the weight "
            f"{_UNTUNED_WEIGHT} in the fusion; neither is tuned",
            flush=True,
        )
    vectors_ND = store.vectors()
    index = exact.build(vectors_ND)
    cut = widths.systems(settings, vectors_ND)
    whole = functools.partial(exact.search, index)
    encoded = functools.cache(lambda split: trained.queries(queries[split])[0])

    def search_dense(split: str, search: widths.Search = whole) -> measures.Run:
        found = passages.search(lambda k: search(encoded(split), k), store.text_of_row, depth)
        return runs.from_rows(
            list(splits[split]), dataset.doc_ids, *found, drop_same_id=settings.drop_same_id
        )

    found = {
        split: {"bm25": search_bm25(tuned, split), "dual_encoder": search_dense(split)} for split in splits
    }
    weight = _UNTUNED_WEIGHT
    if "dev" in splits:
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
    test_runs |= {name: search_dense("test", search) for name, search in cut.items()}
    per_query = {
        name: measures.evaluate(splits["test"], run, settings.measures) for name, run in test_runs.items()
    }

    retriever.save(run_dir, dataset, tuned, weight)
    reports.write_runs(run_dir, test_runs, settings.run_depth)
    meta = {
        **run_dirs.meta(experiment.config),
        "data": dataset.summary(),
        "corpus_hash": dataset.corpus_hash,
        "best_step": trained.step,
        "bm25": chosen,
        "fusion_weight": weight,
        "tuned_on_dev": "dev" in splits,
        "parameters": sum(x.size for x in jax.tree.leaves(trained.variables["params"])),
        "wall_seconds": {
            "training": metrics.training_seconds(run_dir),
            "evaluation": round(time.monotonic() - started, 1),
        },
    }
    results.write(run_dir, meta, per_query)
    reports.show(run_dir)
    if cut:
        title = f"{dataset.name}: {len(splits['test']):,} test queries, 95% of resamples of them"
        widths.plot(run_dir / "plots" / "widths.png", settings, per_query, vectors_ND.shape[1], title)
    if "dev" in splits and "schedule" in experiment.config:
        others = {name: found["dev"][name] for name in ("bm25", "hybrid")}
        reports.plot_training(run_dir, experiment.config, dataset, splits["dev"], others)
    else:
        print(f"\nwritten: {run_dir}/results.json, per_query.json, runs/, tables/")


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
