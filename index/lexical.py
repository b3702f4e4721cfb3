"""BM25 through `bm25s`, behind a text-in contract: `BM25.build(texts)`, `.search(queries, k)`.

Words are made into term counts once (`analyze`); a setting of k1, b and title weight then costs one
pass over the counts, so a grid of settings is searched without reading the text again (`tune`).

The formulas are bm25s's (by default the "Lucene" variant; Lù, 2024, "BM25S: Orders of magnitude
faster lexical search via eager sparse scoring"), which has their names from Kamphuis et al., 2020,
"Which BM25 do you mean?". Its index builder goes document by document and its top-k leaves the order
of ties open, so both are done here: over whole arrays, and with ties to the lower row.

Dimension letters: Q queries, N documents, V terms, K results.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse

from index.terms import (
    CODE,
    PROSE,
    Analyzed,
    Analyzer,
    Vocabulary,
    analyze,
    check_texts,
    import_bm25s,
    with_progress,
)

__all__ = [
    "BM25",
    "CODE",
    "PROSE",
    "Analyzed",
    "Analyzer",
    "Setting",
    "Vocabulary",
    "analyze",
    "grid",
    "tune",
]

_WEIGHTS, _TERMS = "weights.npz", "terms.json"
_METHODS = ("lucene", "robertson", "atire")  # those for which a term that is absent scores 0


class BM25:
    """A BM25 index. Make one with `build`, or with `from_analyzed` where settings are varied.

    score(q, d) = sum over the terms t of q, repeated ones each time, of
      ln(1 + (N - n_t + 0.5) / (n_t + 0.5)) * f / (f + k1 * (1 - b + b * |d| / mean |d|))

    where n_t documents have t, and d has f occurrences of it among |d| terms (method "lucene").
    """

    def __init__(self, weights_VN: scipy.sparse.csr_array, vocabulary: Vocabulary):
        self._weights_VN = weights_VN
        self._vocabulary = vocabulary

    @classmethod
    def build(
        cls,
        texts: Sequence[str],
        *,
        k1: float = 0.9,
        b: float = 0.4,
        analyzer: Analyzer = PROSE,
        titles: Sequence[str] | None = None,
        title_weight: float = 1.0,
        method: str = "lucene",
        progress: bool = False,
    ) -> "BM25":
        """Makes an index of `texts`: `analyze`, then `from_analyzed`; see there for arguments and errors."""
        analyzed = analyze(texts, analyzer=analyzer, titles=titles, progress=progress)
        return cls.from_analyzed(analyzed, k1=k1, b=b, title_weight=title_weight, method=method)

    @classmethod
    def from_analyzed(
        cls,
        analyzed: Analyzed,
        *,
        k1: float = 0.9,
        b: float = 0.4,
        title_weight: float = 1.0,
        method: str = "lucene",
    ) -> "BM25":
        """Makes an index of counted texts.

        Args:
          analyzed: from `analyze`.
          k1: saturation of repeated terms, 0 or more.
          b: how far a long document is discounted, 0 to 1.
          title_weight: how often a title's terms are counted, 0 or more; need not be whole. The
            weighted titles count towards the length of a document.
          method: "lucene", "robertson" or "atire", as bm25s defines them.

        Raises:
          ValueError: if a setting is out of range.
        """
        check_settings(k1=k1, b=b, title_weight=title_weight, method=method)
        counts_NV = analyzed.text + analyzed.title * np.float32(title_weight)
        counts_NV.eliminate_zeros()  # of titles that weigh nothing
        return cls(_weights(counts_NV, k1, b, method), analyzed.vocabulary)

    def search(
        self, queries: Sequence[str], k: int, *, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best documents of each query.

        Args:
          queries: Q texts.
          k: results per query; may exceed N.
          progress: show a progress bar.

        Returns:
          scores: float32 [Q, k], descending; -inf where there is no document.
          rows: int32 [Q, k]; -1 where there is no document: one that shares no term with the query
            (score 0) is not a hit. Equal scores are in the order of their rows.

        Raises:
          ValueError: if `k` is below 1.
        """
        check_texts("queries", queries)
        return self.search_counts(self._vocabulary.counts(queries), k, progress=progress)

    def search_counts(
        self, queries_QV: scipy.sparse.csr_array, k: int, *, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """`search` for queries that `Vocabulary.counts` has counted."""
        if k < 1:
            raise ValueError(f"k is {k}; at least 1 is needed")
        Q = queries_QV.shape[0]
        scores_QK = np.full((Q, k), -np.inf, np.float32)
        rows_QK = np.full((Q, k), -1, np.int32)
        for query in with_progress(range(Q), "searching", progress):
            terms = slice(*queries_QV.indptr[query : query + 2])
            scores_N = self._scores(queries_QV.indices[terms], queries_QV.data[terms])
            scores, rows = _top(scores_N, k)
            scores_QK[query, : len(rows)], rows_QK[query, : len(rows)] = scores, rows
        return scores_QK, rows_QK

    def score(self, queries: Sequence[str], rows_QM: np.ndarray) -> np.ndarray:
        """Returns the scores float32 [Q, M] of given documents, 0 where one shares no term with the query.

        Args:
          queries: Q texts.
          rows_QM: rows of documents, -1 for none, whose score is NaN.

        Raises:
          ValueError: there are not Q rows.
        """
        check_texts("queries", queries)
        if len(rows_QM) != len(queries):
            raise ValueError(f"rows_QM has {len(rows_QM)} rows; allowed: one a query, {len(queries)}")
        queries_QV = self._vocabulary.counts(queries)
        scores_QM = np.full(rows_QM.shape, np.nan, np.float32)
        for query, rows_M in enumerate(rows_QM):
            terms = slice(*queries_QV.indptr[query : query + 2])
            scores_N = self._scores(queries_QV.indices[terms], queries_QV.data[terms])
            scores_QM[query] = np.where(rows_M >= 0, scores_N[rows_M], np.nan)
        return scores_QM

    def _scores(self, terms: np.ndarray, counts: np.ndarray) -> np.ndarray:
        weights = self._weights_VN
        scores_N = np.zeros(weights.shape[1])
        for term, count in zip(terms, counts, strict=True):
            posting = slice(*weights.indptr[term : term + 2])
            # A term's documents are distinct, so that no addition is lost.
            scores_N[weights.indices[posting]] += weights.data[posting] * count
        return scores_N.astype(np.float32)

    def save(self, folder: str | Path) -> None:
        """Writes the index to a folder, made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        scipy.sparse.save_npz(folder / _WEIGHTS, self._weights_VN, compressed=False)
        terms = {
            "analyzer": dataclasses.asdict(self._vocabulary.analyzer),
            "columns": self._vocabulary.columns,
        }
        (folder / _TERMS).write_text(json.dumps(terms, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "BM25":
        """Opens what `save` wrote. Raises FileNotFoundError if there is none."""
        terms = json.loads((Path(folder) / _TERMS).read_text(encoding="utf-8"))
        vocabulary = Vocabulary(terms["columns"], Analyzer(**terms["analyzer"]))
        return cls(scipy.sparse.load_npz(Path(folder) / _WEIGHTS), vocabulary)


class Setting(NamedTuple):
    """What `tune` varies; see `BM25.from_analyzed`."""

    k1: float
    b: float
    title_weight: float = 1.0


def check_settings(*, k1: float, b: float, title_weight: float, method: str = "lucene") -> None:
    """Raises ValueError if a setting is out of its range; the message names it."""
    for name, value, high in (
        ("k1", k1, math.inf),
        ("b", b, 1),
        ("title_weight", title_weight, math.inf),
    ):
        if not (0 <= value <= high and math.isfinite(value)):
            allowed = "0 to 1" if high == 1 else "0 or more, and finite"
            raise ValueError(f"{name} is {value}; allowed: {allowed}")
    if method not in _METHODS:
        raise ValueError(f"method is {method!r}; allowed: {', '.join(_METHODS)}")


def grid(k1: Iterable[float], b: Iterable[float], title_weight: Iterable[float] = (1.0,)) -> list[Setting]:
    """Returns every combination."""
    return list(itertools.starmap(Setting, itertools.product(k1, b, title_weight)))


def tune(
    analyzed: Analyzed,
    queries: Sequence[str],
    settings: Iterable[Setting],
    evaluate: Callable[[np.ndarray, np.ndarray], float],
    *,
    k: int,
    progress: bool = False,
) -> tuple[Setting, dict[Setting, float]]:
    """Tries settings on development queries.

    Args:
      analyzed: the documents, from `analyze`; they are not read again.
      queries: the development queries.
      settings: what to try, such as a `grid`.
      evaluate: called with the `scores` and `rows` [Q, k] of a search; the larger its result, the better.
      k: results per query that `evaluate` needs.
      progress: show a progress bar.

    Returns:
      the best setting, the first of equals; and the result of each, in the order tried.

    Raises:
      ValueError: if there are no settings, or one is out of range.
    """
    settings = list(settings)
    if not settings:
        raise ValueError("settings is empty; at least one is needed")
    check_texts("queries", queries)
    queries_QV = analyzed.vocabulary.counts(queries)
    table = {}
    for setting in with_progress(settings, "tuning BM25", progress):
        index = BM25.from_analyzed(analyzed, **setting._asdict())
        table[setting] = float(evaluate(*index.search_counts(queries_QV, k)))
    return max(table, key=table.get), table


def _weights(counts_NV: scipy.sparse.csr_array, k1: float, b: float, method: str) -> scipy.sparse.csr_array:
    """The score [V, N] that each term lends each document it is in."""
    scoring = import_bm25s().scoring
    N, V = counts_NV.shape
    lengths_N = counts_NV.sum(axis=1, dtype=np.float64)
    mean = lengths_N.mean() or 1.0  # where every document is empty, so that none divides by 0
    frequencies_V = np.bincount(counts_NV.indices, minlength=V)
    idf = scoring._select_idf_scorer(method)
    # Many terms have the same document frequency, and bm25s's formula takes one at a time.
    distinct, which_V = np.unique(frequencies_V, return_inverse=True)
    idf_V = np.array([idf(int(n), N) if n else 0.0 for n in distinct])[which_V]
    weights_VN = counts_NV.tocsc()
    of_term = np.repeat(np.arange(V), np.diff(weights_VN.indptr))
    saturation = scoring._select_tfc_scorer(method)(
        tf_array=weights_VN.data.astype(np.float64), l_d=lengths_N[weights_VN.indices], l_avg=mean, k1=k1, b=b
    )
    weights = (saturation * idf_V[of_term]).astype(np.float32)
    return scipy.sparse.csr_array((weights, weights_VN.indices, weights_VN.indptr), shape=(V, N))


def _top(scores_N: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest positive scores and their rows, ties to the lower row."""
    rows = np.flatnonzero(scores_N > 0)
    # The bits of positive floats are ordered as they are, so that (score, -row) is one integer.
    keys = scores_N[rows].view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys |= np.uint64(0xFFFFFFFF) - rows.astype(np.uint64)
    if len(keys) > k:
        keys = np.partition(keys, len(keys) - k)[-k:]
    keys = np.sort(keys)[::-1]
    scores = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return scores, (np.uint64(0xFFFFFFFF) - (keys & np.uint64(0xFFFFFFFF))).astype(np.int32)
