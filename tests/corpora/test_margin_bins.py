"""Negatives drawn evenly over bins of a teacher's margins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import batches
from corpora.margin_bins import chances


def test_bins_that_are_not_empty_are_drawn_alike_and_so_are_the_negatives_of_each():
    # Scores 0 to 8 in four bins of width 2: two, none, one and three negatives, the highest in the last one.
    scores = np.array([[0.0, 1.9, 4.0, 6.0, 7.0, 8.0], [5.0, 5.0, np.nan, np.nan, np.nan, np.nan]])
    third = 1 / 3
    expected = [[third / 2] * 2 + [third] + [third / 3] * 3, [0.5, 0.5, 0, 0, 0, 0]]
    np.testing.assert_allclose(chances(scores, 4), expected)
    assert chances(np.full((1, 3), np.nan), 4).tolist() == [[0, 0, 0]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 99))
def test_chances_sum_to_one_and_do_not_change_with_the_scale(bins, count, seed):
    scores = np.random.default_rng(seed).integers(-3, 4, (4, count)).astype(np.float32)
    found = chances(scores, bins)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    np.testing.assert_allclose(chances(4 * scores - 8, bins), found)


def test_what_is_drawn_first_follows_the_chances_and_none_comes_last():
    listed = np.tile([4, 5, 6, -1], (40_000, 1))
    wanted = np.tile([0.7, 0.2, 0.1, 0.0], (40_000, 1))
    bits = np.random.default_rng(0).integers(0, 2**64, listed.shape, dtype=np.uint64)
    places = batches.drawn(listed, 4, bits, wanted)
    assert (np.sort(places, axis=1) == np.arange(4)).all()
    assert (places[:, 3] == 3).all()
    shares = np.bincount(places[:, 0], minlength=4) / len(places)
    np.testing.assert_allclose(shares, wanted[0], atol=0.01)
    alike = np.bincount(batches.drawn(listed, 1, bits)[:, 0], minlength=4) / len(places)
    assert alike[:3] == pytest.approx([1 / 3] * 3, abs=0.01)
