"""The FM-index against counting in the text itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.tables import DataError
from generative_retrieval import fm_index

_DOCUMENTS = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=6).filter(any)


def _build(documents: list[list[int]]) -> fm_index.FMIndex:
    offsets = np.cumsum([0, *map(len, documents)])
    return fm_index.build(np.asarray([token for document in documents for token in document]), offsets)


def _occurrences(documents: list[list[int]], ngram: list[int]) -> list[tuple[int, int]]:
    return [
        (row, start)
        for row, document in enumerate(documents)
        for start in range(len(document) - len(ngram) + 1)
        if document[start : start + len(ngram)] == ngram
    ]


@given(_DOCUMENTS, st.lists(st.integers(0, 4), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_equals_counting_in_the_text(documents, ngram):
    index = _build(documents)
    expected = _occurrences(documents, ngram)
    assert index.count(ngram) == len(expected)
    run = index.find(ngram)
    assert list(zip(*(part.tolist() for part in index.occurrences(run)), strict=True)) == expected
    assert index.documents(ngram).tolist() == sorted({row for row, _ in expected})
    behind = [
        documents[row][start + len(ngram)]
        for row, start in expected
        if start + len(ngram) < len(documents[row])
    ]
    tokens, counts = index.following(run)
    assert dict(zip(tokens.tolist(), counts.tolist(), strict=True)) == {t: behind.count(t) for t in behind}
    assert tokens.tolist() == sorted(tokens.tolist())


@given(_DOCUMENTS)
@settings(max_examples=50, deadline=None)
def test_the_empty_ngram_goes_on_with_every_token(documents):
    index = _build(documents)
    flat = [token for document in documents for token in document]
    tokens, counts = index.following(index.everything)
    assert dict(zip(tokens.tolist(), counts.tolist(), strict=True)) == {t: flat.count(t) for t in flat}
    assert index.count([]) == len(index) == len(flat)


def test_no_ngram_crosses_documents():
    index = _build([[7, 8], [9, 7]])
    assert index.count([8, 9]) == 0
    assert index.following(index.find([8]))[0].size == 0
    # By hand: 7 stands first in document 0 and second in document 1.
    documents, begins = index.occurrences(index.find([7]))
    assert (documents.tolist(), begins.tolist()) == ([0, 1], [0, 1])


@given(st.lists(st.integers(1, 3), max_size=40))
@settings(max_examples=100, deadline=None)
def test_suffix_array_equals_sorting_suffixes(keys):
    keys = [*keys, 0]
    found = fm_index.suffix_array(np.asarray(keys))
    assert found.tolist() == sorted(range(len(keys)), key=lambda start: keys[start:])


def test_long_repetitions_are_sorted():
    document = [1, 2] * 300
    index = _build([document, document, [2, *document]])
    assert index.count([1, 2] * 300) == 3
    assert index.count([2] + [1, 2] * 300) == 1


def test_saved_and_loaded(tmp_path):
    index = _build([[1, 2, 3], [2, 3]])
    index.save(tmp_path / "fm.npz")
    loaded = fm_index.FMIndex.load(tmp_path / "fm.npz")
    assert loaded.count([2, 3]) == index.count([2, 3]) == 2
    assert loaded.documents([2, 3]).tolist() == [0, 1]
    (tmp_path / "fm.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="holds no FM-index"):
        fm_index.FMIndex.load(tmp_path / "fm.npz")
    with pytest.raises(DataError, match="no FM-index at"):
        fm_index.FMIndex.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("tokens", "offsets", "message"),
    [
        ([], [0], "at least one token"),
        ([-1], [0, 1], "none below 0"),
        ([1, 2], [0, 1], "ascending from 0 to 2"),
    ],
)
def test_refuses_what_is_no_corpus(tokens, offsets, message):
    with pytest.raises(ValueError, match=message):
        fm_index.build(np.asarray(tokens, np.int64), np.asarray(offsets))
