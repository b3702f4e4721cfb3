"""A document's score is that of its best passage: MaxP of Dai and Callan (2019), "Deeper Text
Understanding for IR with Contextual Neural Language Modeling".

Letters: Q queries, N passages, D documents, K passages found for a query.
"""

from collections.abc import Callable

import numpy as np


def search(
    search_passages: Callable[[int], tuple[np.ndarray, np.ndarray]], document_of_row: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best documents of each query, as exactly as passages are searched.

    Passages are searched deeper, twice as deep each time, until every query has found k documents.

    Args:
      search_passages: from a number K to the K best passages of each query, scores [Q, K] and rows int32
        [Q, K], as an index's search returns them: best first, equal scores in the order of rows.
      document_of_row: int32 [N], the document of each passage, ascending.
      k: documents a query.

    Returns:
      scores: float32 [Q, k], descending; -inf where there is no document.
      rows: int32 [Q, k], of documents; -1 where there is none. Equal scores are in the order of rows.
    """
    document_of_row = np.asarray(document_of_row)
    passages, counts_D = len(document_of_row), np.bincount(document_of_row)
    if passages == len(counts_D) and counts_D.max(initial=0) <= 1:
        return search_passages(k)
    # Among k times the most passages of a document there are k documents.
    deepest = min(k * int(counts_D.max()), passages)
    depth = min(-(-k * passages // len(counts_D)), deepest)  # k times the passages of a usual document
    while True:
        scores_QK, rows_QK = best_passages(*search_passages(depth), document_of_row, k)
        if depth == deepest or (rows_QK[:, min(k, len(counts_D)) - 1] >= 0).all():
            return scores_QK, rows_QK
        depth = min(2 * depth, deepest)


def best_passages(
    scores_QK: np.ndarray, passage_rows_QK: np.ndarray, document_of_row: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first k documents that occur in each query's ranking of passages.

    A document's first passage in the ranking is its best, so these are the k best documents wherever
    k occur; where fewer do, and passages were left out of the ranking, documents may be missing.

    Args:
      scores_QK: best first.
      passage_rows_QK: int32, -1 for none.
      document_of_row: int32 [N], the document of each passage.
      k: documents a query.

    Returns:
      See `search`.

    Raises:
      ValueError: the shapes differ, or `k` is below 1.

    >>> scores, rows = best_passages([[4.0, 3.0, 1.0]], [[2, 1, 0]], [0, 1, 1], 3)
    >>> rows.tolist(), scores.tolist()
    ([[1, 0, -1]], [[4.0, 1.0, -inf]])
    """
    scores_QK, rows_QK = np.asarray(scores_QK, np.float32), np.asarray(passage_rows_QK)
    if scores_QK.shape != rows_QK.shape or rows_QK.ndim != 2:
        raise ValueError(f"scores have shape {scores_QK.shape} and rows {rows_QK.shape}; both must be [Q, K]")
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is needed")
    documents_QK = np.where(rows_QK < 0, -1, np.asarray(document_of_row, np.int32)[rows_QK])
    # Sorted by document, stably, the first of each run is the document's best passage.
    order_QK = np.argsort(documents_QK, axis=1, kind="stable")
    sorted_QK = np.take_along_axis(documents_QK, order_QK, axis=1)
    is_first_QK = np.diff(sorted_QK, axis=1, prepend=-1) != 0  # a row of none is never one
    keep_QK = np.zeros(rows_QK.shape, bool)
    np.put_along_axis(keep_QK, order_QK, is_first_QK, axis=1)
    kept_QK = np.argsort(~keep_QK, axis=1, kind="stable")[:, :k]
    keep_QK = np.take_along_axis(keep_QK, kept_QK, axis=1)
    scores_QK = np.where(keep_QK, np.take_along_axis(scores_QK, kept_QK, axis=1), np.float32(-np.inf))
    rows_QK = np.where(keep_QK, np.take_along_axis(documents_QK, kept_QK, axis=1), -1)
    pad = ((0, 0), (0, k - kept_QK.shape[1]))
    return (
        np.pad(scores_QK, pad, constant_values=-np.inf),
        np.pad(rows_QK, pad, constant_values=-1).astype(np.int32),
    )
