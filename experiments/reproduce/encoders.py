"""Dual encoders on LIMIT: trained by `experiments.train`, and tested on collections they have not seen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corpora.dataset import Dataset
from corpora.sources import beir_folder, limit
from corpora.tables import DataError
from dual_encoder.trained import Trained
from eval import measures, runs
from experiments import run_dirs
from experiments.reproduce.runs import train as train_run
from index import exact, lexical

DEPTHS = (2, 10, 20, 100)
RECALLS = tuple(f"recall@{depth}" for depth in DEPTHS)


def train(
    folder: Path, name: str, collection: Mapping[str, Any], split: str, *, width: int, steps: int
) -> Path:
    """Trains and evaluates a run, see experiments.reproduce.runs.

    Args:
      folder: of the runs.
      name: of this one.
      collection: arguments of corpora.sources.limit.load.
      split: to train on; `test` is overfitting.
      width: of the vectors.
      steps: of training.
    """
    given = dict(collection, width=width, steps=steps, train=split)
    return train_run(folder, name, "dual_encoder/limit.py", given)


def on_new_collections(
    run_dir: Path, collections: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Returns recalls by name of one trained run on collections of other people and items (seed 1)."""
    return {
        name: dense_recalls(run_dir, limit.load(**collection, seed=1), RECALLS)
        for name, collection in collections.items()
    }


def on_limit_small(run_dir: Path) -> dict[str, Any]:
    """Returns recalls on limit-small of BM25 and of a trained run; {"skipped": why} where it is not there."""
    try:
        beir_folder.find("limit-small")
    except DataError as error:
        return {"skipped": str(error)}
    dataset = beir_folder.load(folder="limit-small")
    names = RECALLS[:-1]  # there are 46 documents
    qrels, texts = _test_queries(dataset)
    scores_QK, rows_QK = lexical.BM25.build(dataset.titles_and_texts()[1]).search(texts, DEPTHS[-2])
    run = runs.from_rows(list(qrels), dataset.doc_ids, scores_QK, rows_QK)
    return {
        "bm25": measures.means(measures.evaluate(qrels, run, names)),
        "dual_encoder": dense_recalls(run_dir, dataset, names),
    }


def dense_recalls(run_dir: Path, dataset: Dataset, names: Sequence[str]) -> dict[str, float]:
    """Returns what a trained run reaches on the test queries of a collection it was not trained on."""
    qrels, texts = _test_queries(dataset)
    trained = Trained.load(run_dir, run_dirs.load_config(run_dir))
    vectors_ND, _ = trained.documents(dataset.documents)
    queries_QD, _ = trained.queries(texts)
    depth = max(measures.depth(name) for name in names)
    scores_QK, rows_QK = exact.search(exact.build(vectors_ND), queries_QD, depth)
    run = runs.from_rows(list(qrels), dataset.doc_ids, scores_QK, rows_QK)
    return measures.means(measures.evaluate(qrels, run, names))


def _test_queries(dataset: Dataset) -> tuple[measures.Qrels, list[str]]:
    qrels = dataset.split("test")
    return qrels, [dataset.queries[query_id] for query_id in qrels]
