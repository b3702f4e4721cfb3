"""Who mines the listed hard negatives of training queries: a table int32 [queries, M], -1 beyond.

A config's `batch.negatives` names one of these; the experiment hands it the collection and the pairs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from corpora.batches import Pairs
from corpora.dataset import Dataset
from corpora.tables import DataError
from index import lexical


def bm25(
    dataset: Dataset,
    pairs: Pairs,
    *,
    count: int,
    skip: int = 0,
    analyzer: lexical.Analyzer = lexical.PROSE,
    **settings: Any,
) -> np.ndarray:
    """The documents that BM25 ranks highest and that are not known to be relevant.

    Karpukhin et al. (2020), "Dense Passage Retrieval for Open-Domain Question Answering".

    Args:
      dataset: the collection.
      pairs: training examples; `pairs.positives` are left out of the negatives.
      count: M, how many to keep a query.
      skip: how many of the highest ranked to pass over, which are the likeliest to be relevant
        though not judged so.
      analyzer: how text becomes terms.
      **settings: `k1`, `b` and `title_weight`, see lexical.BM25.from_analyzed.

    Raises:
      ValueError: `count` is below 1 or `skip` below 0.
    """
    _check_counts(count, skip)
    titles, texts = dataset.titles_and_texts()
    index = lexical.BM25.build(texts, titles=titles, analyzer=analyzer, **settings)
    most_positives = pairs.positives.shape[1]
    queries = [dataset.queries[query_id] for query_id in pairs.query_ids]
    _, rows_QK = index.search(queries, skip + count + most_positives)
    return drop_positives(rows_QK[:, skip:], pairs.positives)[:, :count]


def nearest(search: Callable[[int], np.ndarray], pairs: Pairs, *, count: int, skip: int = 0) -> np.ndarray:
    """The documents that the model itself ranks highest and that are not known to be relevant.

    The negatives of Xiong et al. (2021), "Approximate Nearest Neighbor Negative Contrastive Learning for
    Dense Text Retrieval", mined between two steps: the paper's index lags behind the training that goes on
    beside it, this one does not, and its search is exact.

    Args:
      search: from a number K to rows [queries, K] of the best documents of every training query.
      pairs, count, skip: as for `bm25`.

    Raises:
      ValueError: `count` is below 1 or `skip` below 0.
    """
    _check_counts(count, skip)
    rows_QK = search(skip + count + pairs.positives.shape[1])
    return drop_positives(rows_QK[:, skip:], pairs.positives)[:, :count]


def _check_counts(count: int, skip: int) -> None:
    if count < 1 or skip < 0:
        raise ValueError(f"negatives: count is {count} and skip {skip}; they must be at least 1 and 0")


def judged(dataset: Dataset, pairs: Pairs, *, count: int) -> np.ndarray:
    """The documents that the judgements say are not relevant: those of relevance 0 or below.

    So a collection brings its own negatives, such as the third column of `corpora.sources.triples`.

    Args:
      dataset: the collection.
      pairs: training examples of a split, which also judges these.
      count: M, how many to keep a query: the first in the order of the judgements.

    Raises:
      ValueError: `count` is below 1.
      DataError: the split judges no document not relevant.
    """
    if count < 1:
        raise ValueError(f"negatives: count is {count}; it must be at least 1")
    row_of = {doc_id: row for row, doc_id in enumerate(dataset.doc_ids)}
    judgements = dataset.split(pairs.split)
    table_QM = np.full((len(pairs.query_ids), count), -1, np.int32)
    for query, query_id in enumerate(pairs.query_ids):
        listed = [row_of[d] for d, relevance in judgements.get(query_id, {}).items() if relevance <= 0]
        listed = listed[:count]
        table_QM[query, : len(listed)] = listed
    if (table_QM < 0).all():
        raise DataError(
            f"{dataset.name}: split {pairs.split!r} judges no document not relevant (relevance 0) to a "
            "training query; dual_encoder.negatives.bm25 mines some"
        )
    return table_QM


def drop_positives(rows_QK: np.ndarray, positives_QP: np.ndarray) -> np.ndarray:
    """Returns the rows [Q, K] in their order without each query's positives, -1 at the end instead."""
    known_QK = (rows_QK[:, :, None] == positives_QP[:, None, :]).any(axis=2) | (rows_QK < 0)
    order_QK = np.argsort(known_QK, axis=1, kind="stable")
    kept_QK = np.where(known_QK, -1, rows_QK)
    return np.take_along_axis(kept_QK, order_QK, axis=1).astype(np.int32)
