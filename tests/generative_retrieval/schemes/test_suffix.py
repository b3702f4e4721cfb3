import doctest

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from generative_retrieval.docids import NONE, Docids, spelled
from generative_retrieval.schemes import suffix


def test_numbers_by_hand():
    # Base 2: 0, 1 | MORE + 2 digits: 2 + 0b00 ... 2 + 0b11 | twice MORE + 3 digits from 6 on.
    assert [spelled(row) for row in suffix.digits(np.array([0, 1, 2, 3, 5, 6, 13, 14]), 2)] == [
        [0], [1], [2, 0, 0], [2, 0, 1], [2, 1, 1], [2, 2, 0, 0, 0], [2, 2, 1, 1, 1], [2, 2, 2, 0, 0, 0, 0],
    ]  # fmt: skip
    assert [spelled(row) for row in suffix.digits(np.array([9, 10, 109, 110]), 10)] == [
        [9], [10, 0, 0], [10, 9, 9], [10, 10, 0, 0, 0],
    ]  # fmt: skip
    # A single digit says nothing: only how many MORE there are.
    assert [spelled(row) for row in suffix.digits(np.array([0, 1, 2]), 1)] == [
        [0], [1, 0, 0], [1, 1, 0, 0, 0],
    ]  # fmt: skip


def test_suffix_and_collisions_by_hand():
    codes = np.array([[3, 4], [3, NONE], [3, 4], [5, 5], [3, 4], [NONE, NONE]], np.int32)
    found = suffix.with_suffix(codes, base=2, first=8)
    assert [spelled(row) for row in found.symbols_NT] == [
        [3, 4, 8], [3, 8], [3, 4, 9], [5, 5, 8], [3, 4, 10, 8, 8], [8],
    ]  # fmt: skip
    assert found.collisions == pytest.approx(3 / 6)


def test_codes_of_no_symbols_are_numbered_by_row():
    found = suffix.with_suffix(np.zeros((3, 0), np.int32), base=2, first=1)
    assert [spelled(row) for row in found.symbols_NT] == [[1], [2], [3, 1, 1]]
    assert found.collisions == 1


@st.composite
def ragged_codes(draw):
    codes = draw(st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=60))
    symbols = np.full((len(codes), 3), NONE, np.int32)
    for row, code in enumerate(codes):
        symbols[row, : len(code)] = code
    return symbols


@settings(max_examples=100, deadline=None)
@given(ragged_codes(), st.integers(1, 5), st.data())
def test_ids_are_unique_prefix_free_and_stay_when_more_come(codes, base, data):
    whole = suffix.with_suffix(codes, base, first=4)
    Docids(whole.symbols_NT, 4 + base + 1, "any", whole.collisions)  # raises where one begins another
    kept = data.draw(st.integers(1, len(codes)))
    before = suffix.with_suffix(codes[:kept], base, first=4)
    for row in range(kept):
        assert spelled(whole.symbols_NT[row]) == spelled(before.symbols_NT[row])
    rows = [tuple(code) for code in codes.tolist()]
    assert whole.collisions == pytest.approx(sum(rows.count(code) > 1 for code in rows) / len(rows))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 300))
def test_spelled_numbers_are_all_different_and_none_begins_another(base, count):
    Docids(suffix.digits(np.arange(count), base), base + 1, "numbers")


def test_stacked_rows_keep_their_symbols():
    both = suffix.stacked(np.array([[1, 2, 3]], np.int32), np.array([[4], [5]], np.int32))
    np.testing.assert_array_equal(both, [[1, 2, 3], [4, NONE, NONE], [5, NONE, NONE]])


def test_example():
    assert doctest.testmod(suffix).failed == 0
