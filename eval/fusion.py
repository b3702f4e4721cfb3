"""Two or more runs made into one: interpolation of normalized scores, and reciprocal rank fusion.

A normalizer takes the scores of one query in one run, float64 [N], and returns `(normalized [N], absent)`,
where `absent` is what a document counts that this run did not list. Any function of that shape will do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from eval import measures

Normalizer = Callable[[np.ndarray], tuple[np.ndarray, float]]


def min_max(scores: np.ndarray) -> tuple[np.ndarray, float]:
    """(s - min) / (max - min), in [0, 1]; an absent document counts 0, as the run's last one does.

    Where all scores are equal they count 1: a run of one document says that it is better than the rest.

    Lee, 1997, "Analyses of multiple evidence combination".

    >>> min_max(np.array([3.0, 1.0, 2.0]))
    (array([1. , 0. , 0.5]), 0.0)
    """
    if scores.size == 0 or np.ptp(scores) == 0:
        return np.ones_like(scores), 0.0
    return (scores - scores.min()) / np.ptp(scores), 0.0


def z_score(scores: np.ndarray) -> tuple[np.ndarray, float]:
    """(s - mean) / standard deviation (of the population); an absent document counts the lowest of these.

    Where all scores are equal they count 0, and an absent document -1, so that it still comes after them.

    Montague and Aslam, 2001, "Relevance score normalization for metasearch".

    >>> z_score(np.array([3.0, 1.0]))
    (array([ 1., -1.]), -1.0)
    """
    # Equal scores need not have a deviation of exactly 0: that of [0.1, 0.1, 0.1] is 1.4e-17.
    deviation = scores.std() if scores.size and np.ptp(scores) else 0.0
    if deviation == 0:
        return np.zeros_like(scores), -1.0 if scores.size else 0.0
    normalized = (scores - scores.mean()) / deviation
    return normalized, float(normalized.min())


def interpolate(
    first: measures.Run, second: measures.Run, weight: float, *, normalization: Normalizer = min_max
) -> measures.Run:
    """weight * first + (1 - weight) * second, of scores normalized per query and run.

    A document is in the result if either run lists it; from a run that does not it gets what the normalizer
    says of absent ones: by default 0, the lowest score that run gave. A query is there if either run has it;
    the run that lacks it, or lists nothing for it, then adds the same to all its documents.

    Raises:
      ValueError: a weight outside [0, 1], or a score that is not finite.
    """
    _check_weight(weight)
    return {
        query_id: _mix(doc_ids, first_N, second_N, weight)
        for query_id, doc_ids, first_N, second_N in _aligned(first, second, normalization)
    }


def reciprocal_rank(runs: Sequence[measures.Run], k: float = 60) -> measures.Run:
    """Reciprocal rank fusion: the sum over runs of 1 / (k + rank), rank from 1 in `measures.rank`'s order.

    A run that does not list a document adds nothing to it. k damps the first ranks; 60 is the paper's.

    Cormack, Clarke and Buettcher, 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank
    learning methods".

    Raises:
      ValueError: no runs, a negative k, or a NaN score.

    >>> reciprocal_rank([{"q": {"a": 2.0, "b": 1.0}}, {"q": {"b": 7.0}}], k=1)
    {'q': {'a': 0.5, 'b': 0.8333333333333333}}
    """
    if not runs:
        raise ValueError("runs is empty; fusion needs at least one run")
    if not k >= 0:
        raise ValueError(f"k is {k!r}; it must be >= 0")
    fused: measures.Run = {}
    for run in runs:
        for query_id, documents in run.items():
            ranked = measures.rank(documents, f" of query {query_id!r}")
            scores = fused.setdefault(query_id, {})
            for position, doc_id in enumerate(ranked, start=1):
                scores[doc_id] = scores.get(doc_id, 0.0) + 1 / (k + position)
    return fused


def tune_weight(
    first: measures.Run,
    second: measures.Run,
    qrels: measures.Qrels,
    measure: str,
    weights: Sequence[float],
    *,
    normalization: Normalizer = min_max,
    relevance_level: int = 1,
) -> tuple[float, dict[float, float]]:
    """The weight of `interpolate` with the highest mean on a development set, and the mean at every weight.

    Ties go to the lower weight. Use judgments that no reported number is read from.

    Raises:
      ValueError: no weights, one outside [0, 1], or what `interpolate` and `measures.evaluate` raise.
    """
    if not weights:
        raise ValueError("weights is empty; there is nothing to choose from")
    for weight in weights:
        _check_weight(weight)
    judged_first, judged_second = ({q: run[q] for q in qrels if q in run} for run in (first, second))
    aligned = list(_aligned(judged_first, judged_second, normalization))
    curve = {}
    for weight in weights:
        run = {query_id: _mix(*columns, weight) for query_id, *columns in aligned}
        per_query = measures.evaluate(qrels, run, [measure], relevance_level=relevance_level)
        curve[weight] = measures.means(per_query)[measure]
    return min(curve, key=lambda weight: (-curve[weight], weight)), curve


def _aligned(
    first: measures.Run, second: measures.Run, normalization: Normalizer
) -> Iterator[tuple[str, list[str], np.ndarray, np.ndarray]]:
    """Per query: the documents of either run, and their normalized scores [N] in the one and in the other."""
    for query_id in first | second:
        sides = [run.get(query_id, {}) for run in (first, second)]
        doc_ids = list(sides[0] | sides[1])
        columns = []
        for name, documents in zip(("first", "second"), sides, strict=True):
            normalized, absent = normalization(_finite(documents, f" of query {query_id!r} in {name}"))
            scores = dict(zip(documents, normalized.tolist(), strict=True))
            columns.append(np.array([scores.get(doc_id, absent) for doc_id in doc_ids]))
        yield query_id, doc_ids, *columns


def _mix(doc_ids: list[str], first_N: np.ndarray, second_N: np.ndarray, weight: float) -> dict[str, float]:
    return dict(zip(doc_ids, (weight * first_N + (1 - weight) * second_N).tolist(), strict=True))


def _finite(documents: Mapping[str, float], of: str) -> np.ndarray:
    scores = measures.float32_scores(documents, of).astype(np.float64)
    if not np.isfinite(scores).all():
        doc_id = list(documents)[int((~np.isfinite(scores)).argmax())]
        raise ValueError(f"the score{of} of document {doc_id!r} is {documents[doc_id]!r}; it must be finite")
    return scores


def _check_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight!r}; it must be in [0, 1]")
