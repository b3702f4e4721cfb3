"""Who mines the listed hard negatives of training queries: a table int32 [queries, M], -1 beyond.

A config's `batch.negatives` names one of these; the experiment hands it the collection and the pairs.
"""

from typing import Any

import numpy as np

from corpora.batches import Pairs
from corpora.dataset import Dataset
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
    if count < 1 or skip < 0:
        raise ValueError(f"negatives: count is {count} and skip {skip}; they must be at least 1 and 0")
    titles, texts = dataset.titles_and_texts()
    index = lexical.BM25.build(texts, titles=titles, analyzer=analyzer, **settings)
    most_positives = pairs.positives.shape[1]
    queries = [dataset.queries[query_id] for query_id in pairs.query_ids]
    _, rows_QK = index.search(queries, skip + count + most_positives)
    return drop_positives(rows_QK[:, skip:], pairs.positives)[:, :count]


def drop_positives(rows_QK: np.ndarray, positives_QP: np.ndarray) -> np.ndarray:
    """Returns the rows [Q, K] in their order without each query's positives, -1 at the end instead."""
    known_QK = (rows_QK[:, :, None] == positives_QP[:, None, :]).any(axis=2) | (rows_QK < 0)
    order_QK = np.argsort(known_QK, axis=1, kind="stable")
    kept_QK = np.where(known_QK, -1, rows_QK)
    return np.take_along_axis(kept_QK, order_QK, axis=1).astype(np.int32)
