"""Rank-biased overlap by hand, and beside the definition with sets."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.overlap import rank_biased_overlap


def run(ids):
    return {"q": {doc_id: -float(rank) for rank, doc_id in enumerate(ids)}}


def overlap(first, second, p):
    return rank_biased_overlap(run(first), run(second), p=p)["q"]


def test_by_hand():
    # A_1 = 0, A_2 = 1, A_3 = 2 / 3; 0.5^3 * 2 / 3 + 1 * (0 * 0.5 + 1 * 0.25 + 2 / 3 * 0.125)
    assert overlap("abc", "bad", 0.5) == pytest.approx(0.125 * 2 / 3 + 0.25 + 0.125 * 2 / 3)


@settings(max_examples=50, deadline=None)
@given(st.permutations("abcdef"), st.permutations("abcdefgh"), st.integers(1, 6), st.sampled_from([0.3, 0.9]))
def test_it_is_the_definition_with_sets(first, second, depth, p):
    first, second = first[:depth], second[:depth]
    agreement = [len(set(first[:d]) & set(second[:d])) / d for d in range(1, depth + 1)]
    expected = agreement[-1] * p**depth
    expected += (1 - p) / p * sum(a * p**d for d, a in enumerate(agreement, 1))
    assert overlap(first, second, p) == pytest.approx(expected)
    assert overlap(second, first, p) == pytest.approx(expected)
    assert overlap(first, first, p) == pytest.approx(1.0)


def test_what_is_missing():
    assert overlap("", "", 0.9) == 1.0
    assert overlap("a", "", 0.9) == 0.0
    assert rank_biased_overlap({"q": {}, "x": {"a": 1.0}}, {"q": {}}) == {"q": 1.0}
    with pytest.raises(ValueError, match="share no query"):
        rank_biased_overlap({"q": {}}, {"r": {}})
    for p in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"p is {p}; allowed"):
            overlap("a", "a", p)
