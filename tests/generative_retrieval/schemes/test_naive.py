import doctest

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from generative_retrieval.docids import DocidsError, Documents, spelled
from generative_retrieval.schemes import naive
from generative_retrieval.schemes.naive import Naive


def test_rows_are_numerals_that_end_closes(make_documents):
    docids = Naive().assign(make_documents(count=1001), seed=0)
    # Digit d is symbol d + 1, END is 0.
    assert [spelled(docids.symbols_NT[row]) for row in (0, 7, 10, 999, 1000)] == [
        [1, 0], [8, 0], [2, 1, 0], [10, 10, 10, 0], [2, 1, 1, 1, 0],
    ]  # fmt: skip
    assert (docids.size, docids.collisions) == (11, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(1, 2000))
def test_numerals_read_back_as_rows(base, count):
    blank = [""] * count
    docids = Naive(base).assign(Documents(blank, blank, blank), seed=0)
    for row in {0, count // 2, count - 1, min(base, count - 1), min(base**2, count - 1)}:
        *digits, end = spelled(docids.symbols_NT[row])
        assert end == 0
        assert sum((digit - 1) * base**place for place, digit in enumerate(reversed(digits))) == row
        assert digits[0] != 1 or len(digits) == 1  # no zeros before it


def test_later_documents_go_on_counting(make_documents, extended):
    before = Naive().assign(make_documents(count=95), seed=0)
    after = extended(Naive(), before, make_documents(count=10))
    assert spelled(after.symbols_NT[104]) == [2, 1, 5, 0]


def test_errors(make_documents):
    with pytest.raises(ValueError, match="base is 1; it must be at least 2"):
        Naive(base=1)
    ten = Naive(base=10).assign(make_documents(count=3), 0)
    with pytest.raises(DocidsError, match="'naive' with 11 symbols; allowed: 'naive' with 101"):
        Naive(base=100).extend(ten, make_documents(count=1), 0)


def test_example():
    assert doctest.testmod(naive).failed == 0
