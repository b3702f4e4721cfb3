"""From the rows that an index returns to a run.

Letters: Q queries, K results of each.
"""

from collections.abc import Sequence

import numpy as np

from eval import measures


def from_rows(
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    scores_QK: np.ndarray,
    rows_QK: np.ndarray,
    *,
    drop_same_id: bool = False,
) -> measures.Run:
    """Returns the run of a search.

    Args:
      query_ids: of the Q queries.
      doc_ids: of the documents, by row.
      scores_QK: float32, best first.
      rows_QK: int32, -1 for none.
      drop_same_id: whether a query's own text is in the corpus, under the query's id, and is not to be
        found, as in ArguAna (Thakur et al., 2021, "BEIR"). The run then has K - 1 documents of each
        query: search for one more than are wanted.

    Raises:
      ValueError: the shapes differ, or there are not Q queries.
    """
    scores_QK, rows_QK = np.asarray(scores_QK), np.asarray(rows_QK)
    if scores_QK.shape != rows_QK.shape or len(rows_QK) != len(query_ids):
        raise ValueError(
            f"{len(query_ids)} queries, scores {scores_QK.shape} and rows {rows_QK.shape} do not fit"
        )
    run = {
        query_id: {doc_ids[row]: score for row, score in zip(rows_K, scores_K, strict=True) if row >= 0}
        for query_id, rows_K, scores_K in zip(query_ids, rows_QK.tolist(), scores_QK.tolist(), strict=True)
    }
    if not drop_same_id:
        return run
    kept = rows_QK.shape[1] - 1
    return {query_id: dict(list(hits.items())[:kept]) for query_id, hits in without_same_id(run).items()}


def without_same_id(run: measures.Run) -> measures.Run:
    """Returns the run without the document of each query that has the query's own id."""
    return {
        query_id: {doc_id: score for doc_id, score in hits.items() if doc_id != query_id}
        for query_id, hits in run.items()
    }
