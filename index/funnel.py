"""Search by parts of vectors first, and by the whole of them last.

For vectors whose first numbers are vectors too, see `dual_encoder.objectives.matryoshka`: all documents are
scored by a few numbers, the best of them by more, and those that are left by all. Kusupati et al. (2022),
"Matryoshka Representation Learning", call it adaptive retrieval where there is one shortlist, and funnel
retrieval where there are several.

What is found is what exact search would find among those that the stages kept; with a stage that keeps all it
is exact search.

Letters: Q queries, N documents, D vector width, W numbers of a stage, K documents that a stage keeps.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from index import exact

_QUERIES = 64  # rescored at a time: their documents' vectors are gathered


@dataclasses.dataclass(frozen=True)
class Stage:
    """Attributes:
    width: W, numbers of a vector that documents are scored by.
    keep: K, documents of a query that the next stage sees.
    """

    width: int
    keep: int

    def __post_init__(self):
        for field in ("width", "keep"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class Funnel:
    """Attributes:
    vectors: float32 [N, D].
    shortlist: exact search by the first stage's numbers.
    stages: widths ascending, each keeping no more than the one before.
    unit: whether what is cut of a vector is scaled to length 1.
    """

    vectors: np.ndarray
    shortlist: exact.ExactIndex
    stages: tuple[Stage, ...]
    unit: bool


def build(vectors: np.ndarray, stages: Sequence[Stage], *, unit: bool) -> Funnel:
    """Returns the index of `vectors` float [N, D].

    Args:
      vectors: of documents.
      stages: before the last one, which has all D numbers and needs no mention.
      unit: whether what is cut of a vector is scaled to length 1, as where the whole vectors are.

    Raises:
      ValueError: no stages, widths that do not ascend up to D - 1, or a stage that keeps more than the one
        before; and what `exact.build` raises.
    """
    vectors_ND = np.asarray(vectors, np.float32)
    check(stages)
    if stages[-1].width >= vectors_ND.shape[1]:
        raise ValueError(
            f"a stage's width is {stages[-1].width}; allowed: below {vectors_ND.shape[1]}, the whole"
        )
    shortlist = exact.build(cut(vectors_ND, stages[0].width, unit=unit))
    return Funnel(vectors_ND, shortlist, tuple(stages), unit)


def check(stages: Sequence[Stage]) -> None:
    """Raises ValueError where there are none, or their widths do not ascend, or one keeps more than the one
    before."""
    if not stages:
        raise ValueError("stages is empty; allowed: one or more")
    for before, stage in itertools.pairwise(stages):
        if stage.width <= before.width or stage.keep > before.keep:
            raise ValueError(
                f"a stage of width {stage.width} that keeps {stage.keep} follows one of {before.width} that "
                f"keeps {before.keep}; allowed: more numbers, and no more documents"
            )


def search(index: Funnel, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best documents of those that the last stage kept, by the whole vectors.

    Args:
      index: from `build`.
      queries: float [Q, D].
      k: results a query.

    Returns:
      scores: float32 [Q, k], descending; -inf where there is no document.
      rows: int32 [Q, k], -1 where there is none. Equal scores are in the order of rows.
    """
    queries_QD = np.asarray(queries, np.float32)
    first, *others = index.stages
    _, rows_QK = exact.search(
        index.shortlist,
        cut(queries_QD, first.width, unit=index.unit),
        min(first.keep, len(index.vectors)),
    )
    rows_QK = np.asarray(rows_QK)
    for stage in others:
        _, rows_QK = _rescored(index, queries_QD, rows_QK, stage.width, stage.keep)
    return _rescored(index, queries_QD, rows_QK, index.vectors.shape[1], k)


def cut(vectors_ND: np.ndarray, width: int, *, unit: bool) -> np.ndarray:
    """Returns the first `width` numbers of each vector, scaled to length 1 where `unit`; zeros stay zeros."""
    vectors_NW = np.asarray(vectors_ND, np.float32)[:, :width]
    if not unit:
        return vectors_NW
    lengths_N1 = np.linalg.norm(vectors_NW, axis=1, keepdims=True)
    return vectors_NW / np.where(lengths_N1 > 0, lengths_N1, 1)


def _rescored(
    index: Funnel, queries_QD: np.ndarray, rows_QK: np.ndarray, width: int, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `keep` best of the documents `rows_QK` by `width` numbers: scores and rows [Q, keep]."""
    unit = index.unit and width < index.vectors.shape[1]
    scores, rows = [], []
    for start in range(0, len(rows_QK), _QUERIES):
        rows_qK = np.sort(rows_QK[start : start + _QUERIES], axis=1)  # so that ties stay in their order
        vectors_qKW = index.vectors[np.maximum(rows_qK, 0), :width]
        queries_qW = queries_QD[start : start + _QUERIES, :width]
        scores_qK = np.einsum("qw,qkw->qk", queries_qW, vectors_qKW)
        if unit:  # the query's length changes no order
            lengths_qK = np.linalg.norm(vectors_qKW, axis=2)
            scores_qK = scores_qK / np.where(lengths_qK > 0, lengths_qK, 1)
        scores_qK = np.where(rows_qK >= 0, scores_qK, -np.inf).astype(np.float32)
        best_qK = np.argsort(-scores_qK, axis=1, kind="stable")[:, :keep]
        scores.append(np.take_along_axis(scores_qK, best_qK, axis=1))
        rows.append(np.take_along_axis(rows_qK, best_qK, axis=1))
    pad = ((0, 0), (0, max(0, keep - rows_QK.shape[1])))
    scores_QK = np.pad(np.concatenate(scores), pad, constant_values=-np.inf)
    return scores_QK, np.pad(np.concatenate(rows), pad, constant_values=-1).astype(np.int32)
