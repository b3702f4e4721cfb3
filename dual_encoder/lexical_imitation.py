"""Training pairs from BM25, for a dual encoder that is to rank as BM25 does.

    batch = dict(
        pairs=dict(name="dual_encoder.lexical_imitation.bm25_pairs", top=10, ...),
        negatives=dict(name="dual_encoder.negatives.bm25", count=5, skip=45, ...),
        negatives_per_query=1,
    )

Letters: Q queries, P documents that count as relevant.
"""

from typing import Any

import numpy as np

from corpora.batches import Pairs
from corpora.dataset import Dataset
from corpora.tables import DataError
from index import lexical


def bm25_pairs(
    dataset: Dataset, pairs: Pairs, *, top: int, analyzer: lexical.Analyzer = lexical.PROSE, **settings: Any
) -> Pairs:
    """Returns the training queries with the documents that BM25 ranks first, whatever the judgements say.

    The lexical model Λ of Chen et al. (2022), "Salient Phrase Aware Dense Retrieval: Can a Dense Retriever
    Imitate a Sparse One?", is trained so, with documents further down BM25's ranking as hard negatives.

    Args:
      dataset: the collection.
      pairs: training examples; their queries are taken, and nothing else.
      top: how many documents of a query count as relevant; each is an example.
      analyzer: how text becomes terms.
      **settings: `k1`, `b` and `title_weight`, see lexical.BM25.from_analyzed.

    Raises:
      ValueError: `top` is below 1.
      DataError: BM25 finds nothing for any query.
    """
    if top < 1:
        raise ValueError(f"pairs: top is {top}; it must be at least 1")
    titles, texts = dataset.titles_and_texts()
    index = lexical.BM25.build(texts, titles=titles, analyzer=analyzer, **settings)
    queries = [dataset.queries[query_id] for query_id in pairs.query_ids]
    _, rows_QP = index.search(queries, top)
    found = np.flatnonzero(rows_QP[:, 0] >= 0)
    if not len(found):
        raise DataError(f"{dataset.name}: BM25 finds no document for any query of {pairs.split!r}")
    positives = rows_QP[found]
    there_QP = positives >= 0
    return Pairs(
        query_rows=np.repeat(np.arange(len(found), dtype=np.int32), there_QP.sum(axis=1)),
        document_rows=positives[there_QP].astype(np.int32),
        positives=positives.astype(np.int32),
        query_ids=[pairs.query_ids[row] for row in found],
        split=pairs.split,
    )
