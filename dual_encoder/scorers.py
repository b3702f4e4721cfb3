"""Who scores given documents of given queries: teachers to imitate, judges of mined negatives.

    scorer(dataset, query_ids, rows_QM) -> float32 [Q, M]

of the documents in rows `rows_QM` int [Q, M] of a collection, NaN where one is -1. A config names one as a
spec, and the experiment hands it around as an object; `cross_encoder.trained.Scorer` is another. Letters: Q
queries, M documents of each, D width.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corpora.dataset import Dataset
from corpora.tables import DataError
from dual_encoder.negative_filters import Scorer
from dual_encoder.trained import Trained, task_of
from index import lexical
from training import checkpoints
from training.progress import Progress

_AT_ONCE = 16_384  # documents read and tokenized


def trained(run: str, batch_size: int = 256) -> Scorer:
    """Another run's dual encoder, opened when it is first asked: the products of its vectors.

    Args:
      run: the run directory.
      batch_size: texts encoded at a time.

    Raises:
      DataError: there is no run.
      SpecError: it is of another family.
      CheckpointError: it has no best checkpoint.
    """
    opened = opener(run, batch_size)
    return lambda dataset, query_ids, rows_QM: scores(opened(), dataset, query_ids, rows_QM)


def opener(run: str, batch_size: int = 256) -> Callable[[], Trained]:
    """Returns the function that opens a run's dual encoder once; whether there is one is known now. Errors
    are those of `trained`."""
    try:
        config = json.loads((Path(run) / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"no run in {run!r}: {error}") from None
    task_of(config)
    checkpoints.check_best(Path(run) / "checkpoints")
    return functools.cache(lambda: Trained.load(run, config, batch_size=batch_size))


def bm25(*, analyzer: lexical.Analyzer = lexical.PROSE, **settings: Any) -> Scorer:
    """BM25 over titles and texts of the whole collection.

    Args:
      analyzer: how text becomes terms.
      **settings: `k1`, `b` and `title_weight`, see lexical.BM25.from_analyzed.
    """
    built: dict[str, lexical.BM25] = {}  # by collection

    def score(dataset: Dataset, query_ids: Sequence[str], rows_QM: np.ndarray) -> np.ndarray:
        if dataset.corpus_hash not in built:
            titles, texts = dataset.titles_and_texts()
            built[dataset.corpus_hash] = lexical.BM25.build(
                texts, titles=titles, analyzer=analyzer, **settings
            )
        queries = [dataset.queries[query_id] for query_id in query_ids]
        return built[dataset.corpus_hash].score(queries, rows_QM)

    return score


def probability(scorer: Scorer) -> Scorer:
    """The sigmoid of scores that are log odds, such as those of a cross-encoder trained with
    `cross_encoder.losses.pointwise`."""

    def score(dataset: Dataset, query_ids: Sequence[str], rows_QM: np.ndarray) -> np.ndarray:
        return 0.5 * (1 + np.tanh(0.5 * scorer(dataset, query_ids, rows_QM)))

    return score


def weighted(scorers: Sequence[Scorer], weights: Sequence[float]) -> Scorer:
    """The weighted sum of several scorers, an ensemble of teachers. Scores are taken as they are: the weights
    bring them to one scale.

    Raises:
      ValueError: there are not as many weights as scorers, or none.
    """
    if not scorers or len(scorers) != len(weights):
        raise ValueError(f"weights are {list(weights)}; allowed: one for each of {len(scorers)} scorers")

    def score(dataset: Dataset, query_ids: Sequence[str], rows_QM: np.ndarray) -> np.ndarray:
        parts = (w * s(dataset, query_ids, rows_QM) for s, w in zip(scorers, weights, strict=True))
        return np.asarray(sum(parts), np.float32)

    return score


def scores(trained: Trained, dataset: Dataset, query_ids: Sequence[str], rows_QM: np.ndarray) -> np.ndarray:
    """Returns what a dual encoder says of given documents: a document's score is its best passage's.

    Args:
      trained: the dual encoder.
      dataset: the collection; only documents that occur are read.
      query_ids: of the Q queries.
      rows_QM: rows of documents, -1 for none, whose score is NaN.
    """
    scores_QM = np.full(rows_QM.shape, np.nan, np.float32)
    rows = np.unique(rows_QM[rows_QM >= 0])
    if not len(rows):
        return scores_QM
    vectors_RD, first_row = _encoded(trained, dataset, rows)
    vectors_QD, _ = trained.queries([dataset.queries[query_id] for query_id in query_ids])
    for query, rows_M in enumerate(rows_QM):
        there = rows_M >= 0
        places = np.searchsorted(rows, rows_M[there])
        if not len(places):
            continue
        counts = first_row[places + 1] - first_row[places]
        starts = np.cumsum(counts) - counts
        within = np.arange(counts.sum()) - np.repeat(starts, counts)
        scores_R = vectors_RD[np.repeat(first_row[places], counts) + within] @ vectors_QD[query]
        scores_QM[query, there] = np.maximum.reduceat(scores_R, starts)
    return scores_QM


def _encoded(trained: Trained, dataset: Dataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vectors [R, D] of some documents, and where those of the i-th begin [len(rows) + 1]."""
    progress = Progress(len(rows), unit="document", title="encoding the documents to score")
    parts, of_document = [], []
    try:
        for start in range(0, len(rows), _AT_ONCE):
            documents = dataset.documents.read(rows[start : start + _AT_ONCE].tolist())
            vectors_RD, document_of_row = trained.documents(
                documents, lambda count, start=start: progress.update(start + int(count))
            )
            parts.append(vectors_RD)
            of_document.append(document_of_row + start)
    finally:
        progress.close()
    first_row = np.searchsorted(np.concatenate(of_document), np.arange(len(rows) + 1))
    return np.concatenate(parts), first_row
