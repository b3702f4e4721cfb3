"""Retrieval measures per query, equal to the official trec_eval program's.

    Run    query_id -> doc_id -> score
    Qrels  query_id -> doc_id -> grade; a grade >= relevance_level (1 unless said) is relevant

The numbers come from trec_eval's own C code through pytrec_eval. This module adds the names, the mean over
all judged queries, MRR at a cut, and a guard: that C code drops the queries a run lacks, ranks NaN somewhere,
hangs on a query called "no_query", and ends the whole process on ids it cannot spell.
"""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pytrec_eval

Run = dict[str, dict[str, float]]
Qrels = dict[str, dict[str, int]]
PerQuery = dict[str, dict[str, float]]  # measure -> query_id -> value

# Ours -> trec_eval's, whole ranking and cut at k. recip_rank has no cut: "recip_rank.10" is silently uncut.
_WHOLE = {"ndcg": "ndcg", "mrr": "recip_rank", "map": "map", "r_precision": "Rprec"}
_CUT = {
    "ndcg": "ndcg_cut", "mrr": "recip_rank", "map": "map_cut",
    "recall": "recall", "precision": "P", "hits": "success",
}  # fmt: skip
_VALID = ", ".join([*_WHOLE, *(f"{name}@k" for name in _CUT)])

_MAX_CUT = 2**31 - 1  # trec_eval's cuts are C longs, and wrap or saturate beyond
_MAX_GRADE = 10_000  # trec_eval's ndcg takes time quadratic in the highest grade: 2 s a query at 100,000


def evaluate(qrels: Qrels, run: Run, measures: Sequence[str], *, relevance_level: int = 1) -> PerQuery:
    """Each measure for each judged query.

    Names: `ndcg mrr map r_precision`, and `ndcg@k mrr@k map@k recall@k precision@k hits@k` for any k >= 1.
    `hits@k` is trec_eval's success: 1.0 where one of the first k documents is relevant. nDCG takes grades as
    linear gains with a log2 discount (Järvelin and Kekäläinen, 2002, "Cumulated gain-based evaluation of IR
    techniques") and, as in trec_eval, takes no notice of `relevance_level`. The ranking is that of `rank`.

    Every query of `qrels` gets a value, in their order, as with `trec_eval -c`: 0.0 where the run lacks it or
    has no document for it, and 0.0 where none of its documents is relevant. Queries of the run that are not
    in `qrels` are ignored. Unjudged documents and grades below 0 count as not relevant.

    Args:
      qrels: judgments; grades are integers, at most 10,000.
      run: scores of any real type; compared as float32, as trec_eval holds them.
      measures: names as above.
      relevance_level: the lowest grade that is relevant, at least 1.

    Returns:
      measure -> query_id -> value, a Python float.

    Raises:
      ValueError: an unknown measure; a NaN score; no judged query, or one with no judgments; a grade that is
        no integer or too high; an id that is empty, no string, or holds NUL or half a surrogate pair.

    >>> evaluate({"q": {"a": 1, "b": 0}}, {"q": {"a": 0.5, "b": 2.0}}, ["mrr@1", "mrr@2"])
    {'mrr@1': {'q': 0.0}, 'mrr@2': {'q': 0.5}}
    """
    if isinstance(measures, str):
        raise ValueError(f"measures is the string {measures!r}; give a sequence of names")
    parsed = {measure: _parse(measure) for measure in measures}
    if isinstance(relevance_level, bool) or not isinstance(relevance_level, int) or relevance_level < 1:
        raise ValueError(f"relevance_level is {relevance_level!r}; it must be an integer >= 1")
    if not qrels:
        raise ValueError("qrels is empty; there is no judged query to evaluate")

    # trec_eval remembers its last query by name, starting from "no query", later "no_query": a query so
    # called gets stale values or hangs. Numbers for names keep clear of it.
    numbers = {query_id: str(i) for i, query_id in enumerate(qrels)}
    cuts = [measure.partition("@")[2] for measure in parsed]
    deepest = max(map(int, cuts)) if cuts and all(cuts) else None
    grades = {numbers[query_id]: _grades(query_id, judged) for query_id, judged in qrels.items()}
    scores = {
        numbers[query_id]: _scores_for_trec_eval(query_id, run[query_id], deepest)
        for query_id in qrels
        if query_id in run
    }
    if not parsed:
        return {}
    arguments = {argument for argument, _ in parsed.values()}
    evaluator = pytrec_eval.RelevanceEvaluator(grades, arguments, relevance_level=relevance_level)
    values = evaluator.evaluate(scores)

    per_query: PerQuery = {}
    for measure, (argument, cut) in parsed.items():
        key = argument.replace(".", "_")
        column = {query_id: values.get(number, {}).get(key, 0.0) for query_id, number in numbers.items()}
        if cut is not None:
            column = {query_id: _cut_reciprocal(value, cut) for query_id, value in column.items()}
        per_query[measure] = column
    return per_query


def means(per_query: PerQuery) -> dict[str, float]:
    """measure -> mean over all its queries, as `trec_eval -c` averages; ValueError where there are none."""
    empty = [measure for measure, values in per_query.items() if not values]
    if empty:
        raise ValueError(f"per_query has no queries for {empty}; a mean needs at least one")
    return {measure: statistics.fmean(values.values()) for measure, values in per_query.items()}


def rank(documents: Mapping[str, float], of: str = "") -> list[str]:
    """The doc_ids of one query from best to worst in trec_eval's order.

    Higher score first, compared as float32; among equal scores the greater doc_id first, compared by the
    bytes of its UTF-8. Whatever ranks the run file holds play no part. ValueError on a NaN score, with `of`
    (" of query 'q7'") in its message.

    >>> rank({"a": 1.0, "b": 1.0 + 1e-12, "c": 2.0})
    ['c', 'b', 'a']
    """
    # UTF-8 keeps the order of code points, by which Python compares strings.
    doc_ids = sorted(documents, reverse=True)
    scores = float32_scores({doc_id: documents[doc_id] for doc_id in doc_ids}, of)
    return [doc_ids[i] for i in np.argsort(-scores, kind="stable")]


def float32_scores(documents: Mapping[str, float], of: str = "") -> np.ndarray:
    """float32 [N], the scores in the mapping's order; `of` as in `rank`.

    Infinities are kept, and finite scores beyond float32 become infinite, as in trec_eval.

    Raises:
      ValueError: a score is NaN or no number.
    """
    try:
        scores = np.fromiter(documents.values(), np.float64, len(documents))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a score{of} is not a number that float64 holds: {error}") from error
    if np.isnan(scores).any():
        doc_id = list(documents)[int(np.isnan(scores).argmax())]
        raise ValueError(f"the score{of} of document {doc_id!r} is {documents[doc_id]!r}; NaN has no rank")
    with np.errstate(over="ignore"):
        return scores.astype(np.float32)


def depth(measure: str) -> int | None:
    """How many documents of a query a measure looks at; None for all.

    Raises:
      ValueError: the measure is unknown.

    >>> depth("ndcg@10"), depth("map")
    (10, None)
    """
    _parse(measure)
    _, _, cut = measure.partition("@")
    return int(cut) if cut else None


def _parse(measure: str) -> tuple[str, int | None]:
    """trec_eval's argument, and the cut left to us: ("ndcg_cut.10", None); ("recip_rank", 10) for mrr@10."""
    match = re.fullmatch(r"([a-z_]+)(?:@([1-9][0-9]*))?", measure) if isinstance(measure, str) else None
    if match is not None:
        name, cut = match[1], match[2]
        if cut is None and name in _WHOLE:
            return _WHOLE[name], None
        if cut is not None and name in _CUT and len(cut) <= 10 and int(cut) <= _MAX_CUT:
            return (_CUT[name], int(cut)) if name == "mrr" else (f"{_CUT[name]}.{cut}", None)
    raise ValueError(f"measure {measure!r} is unknown; valid: {_VALID} (1 <= k <= {_MAX_CUT})")


def _cut_reciprocal(reciprocal_rank: float, cut: int) -> float:
    """The uncut reciprocal rank already knows where the first relevant document stands."""
    return reciprocal_rank if reciprocal_rank > 0 and round(1 / reciprocal_rank) <= cut else 0.0


def _grades(query_id: str, judged: Mapping[str, int]) -> dict[str, int]:
    _check_ids("query_id", [query_id], "qrels")
    if not judged:
        raise ValueError(f"qrels[{query_id!r}] has no judgments; leave such a query out")
    _check_ids("doc_id", judged, f"qrels[{query_id!r}]")
    grades = {}
    for doc_id, grade in judged.items():
        if not isinstance(grade, (int, np.integer)) or grade > _MAX_GRADE:
            raise ValueError(
                f"qrels[{query_id!r}][{doc_id!r}] is {grade!r}; a grade is an integer <= {_MAX_GRADE}"
            )
        # Below 0 means "in the pool but not judged", which these measures take as 0. It must not reach
        # trec_eval: a query with nothing else makes its ndcg read the grades of the query before.
        grades[doc_id] = max(0, int(grade))
    return grades


def _scores_for_trec_eval(
    query_id: str, documents: Mapping[str, float], depth: int | None
) -> dict[str, float]:
    """The scores of the first `depth` documents, and of those that tie with the last of them.

    trec_eval sorts all it is given by id, twice, so what no measure looks at is better left out. Python's
    numbers, because pytrec_eval takes no others.
    """
    _check_ids("doc_id", documents, f"run[{query_id!r}]")
    scores = float32_scores(documents, f" of query {query_id!r}")
    if depth is None or depth >= scores.size:
        return dict(zip(documents, scores.tolist(), strict=True))
    lowest = np.partition(scores, -depth)[-depth]
    doc_ids = list(documents)
    return {doc_ids[i]: float(scores[i]) for i in np.flatnonzero(scores >= lowest)}


def _check_ids(field: str, ids: Iterable[str], of: str) -> None:
    """trec_eval's ids are C strings: NUL ends them early, half a surrogate pair ends the process."""
    try:
        joined = "".join(ids)
        joined.encode()
        wrong = "\0" in joined or "" in ids
    except (TypeError, UnicodeEncodeError):
        wrong = True
    if wrong:
        bad = next(i for i in ids if not _is_id(i))
        raise ValueError(
            f"{field} {bad!r} in {of} must be a string, not empty, without NUL or lone surrogates"
        )


def _is_id(value: object) -> bool:
    return isinstance(value, str) and value != "" and re.search("[\0\ud800-\udfff]", value) is None
