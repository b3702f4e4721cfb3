"""What is taken out of a ranking before its documents become negatives, and how many each filter took.

A filter is `(dataset, pairs, rows_QK) -> bool [Q, K]`, True where a candidate is to go; -1 stands for none. A
config lists those it wants:

    negatives=dict(
        name="dual_encoder.negatives.bm25",
        count=30,
        depth=60,
        filters=[
            dict(name="dual_encoder.negative_filters.same_text"),
            dict(name="dual_encoder.negative_filters.near_positive", scorer=..., share=0.95),
        ],
    )

A query's known positives are taken out first, always.

Letters: Q queries, K candidates of a query, M negatives that are kept, P known positives of a query.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from corpora.batches import Pairs
from corpora.dataset import Dataset

Filter = Callable[[Dataset, Pairs, np.ndarray], np.ndarray]
# Scores float32 [Q, M] of documents int32 [Q, M] for queries by their ids, NaN where the row is -1.
Scorer = Callable[[Dataset, Sequence[str], np.ndarray], np.ndarray]


class Mined(NamedTuple):
    """Negatives of training queries, and what became of the other candidates.

    Attributes:
      rows: int32 [Q, M], documents of each query, the hardest first, -1 beyond.
      candidates: how many there were before any filter.
      removed: by filter, in the order of their work, how many it took of those that were left.
    """

    rows: np.ndarray
    candidates: int
    removed: dict[str, int]

    def lines(self) -> list[str]:
        """Returns the report: a line of sums, and one a filter."""
        kept = (self.rows >= 0).sum(axis=1)
        return [
            f"{self.candidates:,} candidates of {len(kept):,} queries; kept {kept.sum():,}, at most "
            f"{self.rows.shape[1]} a query; {(kept == 0).sum():,} queries have none",
            *(f"  {name}: removed {count:,}" for name, count in self.removed.items()),
        ]

    def without(self, name: str, goes_QM: np.ndarray) -> "Mined":
        """Returns what is left after one more filter, which removes the negatives where `goes_QM` says so."""
        goes_QM = goes_QM & (self.rows >= 0)
        removed = {**self.removed, name: self.removed.get(name, 0) + int(goes_QM.sum())}
        return Mined(to_the_left(np.where(goes_QM, -1, self.rows)), self.candidates, removed)


def filtered(
    dataset: Dataset,
    pairs: Pairs,
    rows_QK: np.ndarray,
    *,
    count: int,
    skip: int = 0,
    filters: Sequence[Filter] = (),
) -> Mined:
    """Takes negatives from rankings.

    Args:
      dataset: the collection.
      pairs: training examples, whose queries the rankings are of.
      rows_QK: int32, documents of each query, best first, -1 for none.
      count: M, how many to keep a query.
      skip: how many of the highest ranked to pass over, positives among them.
      filters: more, each of which sees what those before it left.
    """
    found = Mined(np.asarray(rows_QK, np.int32), int((np.asarray(rows_QK) >= 0).sum()), {})
    places_K = np.arange(found.rows.shape[1])
    if skip:
        found = found.without(f"the first {skip} ranks", np.broadcast_to(places_K < skip, found.rows.shape))
    found = found.without("known positives", is_positive(found.rows, pairs.positives))
    for each in filters:
        found = found.without(label(each), each(dataset, pairs, found.rows))
    return found._replace(rows=found.rows[:, :count])


def label(function: Callable) -> str:
    """Returns the name of a filter or miner as a reader sees it, whatever arguments it has been given."""
    return getattr(function, "func", function).__name__.replace("_", " ")


def same_text(dataset: Dataset, pairs: Pairs, rows_QK: np.ndarray) -> np.ndarray:
    """Documents with the words of a known positive: the same title and text but for case and white space.

    Collections hold copies of which only one is judged (FAQ pages of several sites, say), and a copy of what
    is relevant is relevant.
    """
    wanted = np.unique(np.concatenate([rows_QK.reshape(-1), pairs.positives.reshape(-1)]))
    wanted = wanted[wanted >= 0]
    numbers, number_N = {}, np.full(len(dataset.doc_ids), -1, np.int64)
    for row, document in zip(wanted, dataset.documents.read(wanted), strict=True):
        words = " ".join(f"{document.title} {document.text}".casefold().split())
        digest = hashlib.blake2b(words.encode(), digest_size=16).digest()
        number_N[row] = numbers.setdefault(digest, len(numbers))
    of_positive_QP = np.where(pairs.positives < 0, -1, number_N[pairs.positives])
    of_candidate_QK = np.where(rows_QK < 0, -2, number_N[rows_QK])
    return is_positive(of_candidate_QK, of_positive_QP)


def near_positive(
    dataset: Dataset,
    pairs: Pairs,
    rows_QK: np.ndarray,
    *,
    scorer: Scorer,
    share: float = 1.0,
    margin: float = 0.0,
) -> np.ndarray:
    """Documents that a teacher scores above `share` times the query's positive less `margin`.

    Moreira et al. (2024), "NV-Retriever: Improving text embedding models with effective hard-negative
    mining": their TopK-PercPos has `share` 0.95, their TopK-MarginPos `margin` 0.05. Of several positives the
    one with the lowest score counts.

    Args:
      scorer: the teacher.
      share: for scores that are positive; of a teacher whose scores are not, use `margin`.
      margin: in the unit of the scores.

    Raises:
      ValueError: `share` is not positive, or the teacher scores no positive of a query.
    """
    if not share > 0:
        raise ValueError(f"near_positive: share is {share}; it must be positive")
    positive_QP = scorer(dataset, pairs.query_ids, pairs.positives)
    if np.isnan(positive_QP).all(axis=1).any():
        raise ValueError("near_positive: the scorer gives no score to any positive of some query")
    most_Q = share * np.nanmin(positive_QP, axis=1) - margin
    scores_QK = scorer(dataset, pairs.query_ids, rows_QK)
    return np.where(np.isnan(scores_QK), -np.inf, scores_QK) > most_Q[:, None]


def is_positive(rows_QK: np.ndarray, positives_QP: np.ndarray) -> np.ndarray:
    """Returns bool [Q, K]: which rows are among the query's own."""
    found_QK = np.zeros(rows_QK.shape, bool)
    for column in range(positives_QP.shape[1]):  # one at a time, as they may be many
        found_QK |= (rows_QK == positives_QP[:, column, None]) & (rows_QK >= 0)
    return found_QK


def to_the_left(rows_QK: np.ndarray) -> np.ndarray:
    """Returns the rows int32 in their order, those of -1 last."""
    order_QK = np.argsort(rows_QK < 0, axis=1, kind="stable")
    return np.take_along_axis(rows_QK, order_QK, axis=1).astype(np.int32)
