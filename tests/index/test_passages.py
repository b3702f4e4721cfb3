"""A document is scored by its best passage, exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index import exact, passages


def oracle(scores_QN, document_of_row, k):
    """Every document's maximum, best first and lower rows first."""
    documents = int(max(document_of_row)) + 1
    scores = np.full((len(scores_QN), k), -np.inf, np.float32)
    rows = np.full((len(scores_QN), k), -1, np.int32)
    for query, scores_N in enumerate(scores_QN):
        best = [scores_N[document_of_row == document].max() for document in range(documents)]
        ranked = sorted(range(documents), key=lambda document: (-best[document], document))[:k]
        rows[query, : len(ranked)] = ranked
        scores[query, : len(ranked)] = [best[document] for document in ranked]
    return scores, rows


def test_best_passages_by_hand():
    # Documents 0, 1, 2 have passages {0, 1}, {2}, {3, 4}.
    scores, rows = passages.best_passages(
        np.array([[9.0, 8.0, 7.0, 6.0], [5.0, 4.0, -np.inf, -np.inf]]),
        np.array([[4, 3, 0, 2], [1, 0, -1, -1]]),
        np.array([0, 0, 1, 2, 2]),
        3,
    )
    np.testing.assert_array_equal(rows, [[2, 0, 1], [0, -1, -1]])
    np.testing.assert_array_equal(scores, [[9, 7, 6], [5, -np.inf, -np.inf]])
    assert (scores.dtype, rows.dtype) == (np.float32, np.int32)


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    queries=st.integers(1, 3),
    k=st.integers(1, 10),
    seed=st.integers(0, 2**16),
)
def test_search_equals_the_oracle(counts, queries, k, seed):
    document_of_row = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    # Few values, so that there are ties within and between documents.
    scores_QN = np.random.default_rng(seed).integers(0, 4, (queries, len(document_of_row))).astype(np.float32)

    def search_passages(depth):
        rows_QK = np.argsort(-scores_QN, axis=1, kind="stable")[:, :depth]
        pad = ((0, 0), (0, depth - rows_QK.shape[1]))
        found = np.take_along_axis(scores_QN, rows_QK, axis=1)
        return np.pad(found, pad, constant_values=-np.inf), np.pad(rows_QK, pad, constant_values=-1)

    scores, rows = passages.search(search_passages, document_of_row, k)
    expected_scores, expected_rows = oracle(scores_QN, document_of_row, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_it_searches_deeper_where_one_document_fills_the_first_passages():
    # Document 0 has 60 passages, all better than those of the 40 others.
    document_of_row = np.array([0] * 60 + list(range(1, 41)))
    vectors_ND = np.linspace(2.0, 1.0, 100, dtype=np.float32)[:, None]
    index = exact.build(vectors_ND)
    depths = []

    def search_passages(depth):
        depths.append(depth)
        return exact.search(index, np.ones((1, 1), np.float32), depth)

    _, rows = passages.search(search_passages, document_of_row, 3)
    np.testing.assert_array_equal(rows, [[0, 1, 2]])
    assert depths == [8, 16, 32, 64]  # 3 documents of 100 / 41 passages, then twice as many


def test_a_document_without_passages_is_never_found():
    def search_passages(depth):
        return np.array([[3.0, 2.0, 1.0]], np.float32)[:, :depth], np.array([[1, 2, 0]], np.int32)[:, :depth]

    _, rows = passages.search(search_passages, np.array([0, 0, 2]), 3)
    np.testing.assert_array_equal(rows, [[0, 2, -1]])


def test_without_passages_nothing_is_searched_twice_or_sorted():
    found = object()
    assert passages.search(lambda depth: (found, depth), np.arange(5), 3) == (found, 3)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"scores have shape \(1, 2\) and rows \(1, 3\)"):
        passages.best_passages(np.zeros((1, 2)), np.zeros((1, 3), int), np.zeros(1, int), 1)
    with pytest.raises(ValueError, match="k is 0"):
        passages.best_passages(np.zeros((1, 2)), np.zeros((1, 2), int), np.zeros(1, int), 0)
