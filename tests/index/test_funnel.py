"""Search by parts of vectors: exact where a stage keeps all, and what its stages kept where it does not."""

import re

import numpy as np
import pytest

from index import exact, funnel
from index.funnel import Stage


def vectors(seed=0, documents=60, queries=7, width=16):
    """Small whole numbers, whose products are exact and often equal."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(-2, 3, (documents, width)).astype(np.float32),
        rng.integers(-2, 3, (queries, width)).astype(np.float32),
    )


def best(scores_QN, rows_QK, keep):
    """The oracle: of each query's rows those with the highest scores, ties to the lower row."""
    return np.array(
        [
            sorted(rows.tolist(), key=lambda row, q=q: (-scores_QN[q, row], row))[:keep]
            for q, rows in enumerate(rows_QK)
        ]
    )


def test_a_stage_that_keeps_all_is_exact_search():
    document_ND, query_QD = vectors()
    expected = exact.search(exact.build(document_ND), query_QD, 9)
    found = funnel.search(funnel.build(document_ND, [Stage(4, 60)], unit=False), query_QD, 9)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("stages", [[(4, 20)], [(2, 30), (4, 12), (8, 12)]], ids=str)
def test_each_stage_keeps_the_best_of_those_before(unit, stages):
    document_ND, query_QD = vectors(1)
    rows_QK = np.tile(np.arange(60), (7, 1))
    for width, keep in stages:
        cut = [funnel.cut(x, width, unit=unit) for x in (query_QD, document_ND)]
        rows_QK = best((cut[0] @ cut[1].T).round(5), rows_QK, keep)
    scores_QN = query_QD @ document_ND.T
    expected_QK = best(scores_QN, rows_QK, 5)
    index = funnel.build(document_ND, [Stage(*stage) for stage in stages], unit=unit)
    scores_QK, found_QK = funnel.search(index, query_QD, 5)
    if not unit:  # whole numbers, so that equal scores are equal
        np.testing.assert_array_equal(found_QK, expected_QK)
    np.testing.assert_array_equal(scores_QK, np.take_along_axis(scores_QN, found_QK, axis=1))
    agree = [len(set(a) & set(b)) for a, b in zip(found_QK.tolist(), expected_QK.tolist(), strict=True)]
    assert np.mean(agree) >= (4.5 if unit else 5)


def test_more_than_was_kept_is_none():
    document_ND, query_QD = vectors()
    index = funnel.build(document_ND, [Stage(4, 3)], unit=False)
    scores_QK, rows_QK = funnel.search(index, query_QD, 5)
    assert (rows_QK[:, :3] >= 0).all()
    assert (rows_QK[:, 3:] == -1).all()
    assert (scores_QK[:, 3:] == -np.inf).all()


def test_zeros_stay_zeros_where_lengths_are_made_equal():
    found = funnel.cut(np.array([[3.0, 4.0, 1.0], [0.0, 0.0, 1.0]]), 2, unit=True)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages is empty; allowed: one or more"),
        (
            [(4, 9), (4, 5)],
            "a stage of width 4 that keeps 5 follows one of 4 that keeps 9; allowed: more numbers",
        ),
        ([(4, 9), (8, 10)], "a stage of width 8 that keeps 10 follows one of 4 that keeps 9; allowed"),
        ([(16, 9)], "a stage's width is 16; allowed: below 16, the whole"),
        ([(0, 9)], "width is 0; it must be at least 1"),
    ],
)
def test_impossible_stages_are_refused(stages, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        funnel.build(vectors()[0], [Stage(*stage) for stage in stages], unit=True)
