"""Training pairs that BM25 makes, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from corpora.batches import Pairs
from corpora.tables import DataError
from dual_encoder import lexical_imitation, negatives
from index import lexical

TEXTS = ["red cat", "red dog red", "blue sky", "cat cat", "green"]
ANALYZER = lexical.Analyzer()


def dataset(*queries):
    return SimpleNamespace(
        name="toy",
        titles_and_texts=lambda: ([""] * len(TEXTS), TEXTS),
        queries={f"q{i}": text for i, text in enumerate(queries)},
    )


def pairs(count):
    return Pairs(
        np.arange(count), np.arange(count), np.arange(count)[:, None], [f"q{i}" for i in range(count)]
    )


def test_the_first_of_bm25_are_relevant_and_a_query_without_any_is_left_out():
    of, given = dataset("cat", "purple", "red sky"), pairs(3)
    found = lexical_imitation.bm25_pairs(of, given, top=2, analyzer=ANALYZER)
    _, rows = lexical.BM25.build(TEXTS, analyzer=ANALYZER).search(["cat", "red sky"], 2)
    np.testing.assert_array_equal(rows, [[3, 0], [2, 1]])
    np.testing.assert_array_equal(found.positives, rows)
    np.testing.assert_array_equal(found.query_rows, [0, 0, 1, 1])
    np.testing.assert_array_equal(found.document_rows, [3, 0, 2, 1])
    assert found.query_ids == ["q0", "q2"]
    one = lexical_imitation.bm25_pairs(dataset("green"), pairs(1), top=3, analyzer=ANALYZER)
    np.testing.assert_array_equal(one.positives, [[4, -1, -1]])
    np.testing.assert_array_equal(one.document_rows, [4])


def test_what_follows_in_bm25_are_the_negatives():
    of = dataset("red cat sky")
    found = lexical_imitation.bm25_pairs(of, pairs(1), top=1, analyzer=ANALYZER)
    _, rows = lexical.BM25.build(TEXTS, analyzer=ANALYZER).search(["red cat sky"], 4)
    mined = negatives.bm25(of, found, count=2, skip=2, analyzer=ANALYZER)
    np.testing.assert_array_equal(mined.rows, rows[:, 2:4])


def test_errors():
    with pytest.raises(ValueError, match="top is 0; it must be at least 1"):
        lexical_imitation.bm25_pairs(dataset("cat"), pairs(1), top=0)
    with pytest.raises(DataError, match="BM25 finds no document for any query of 'train'"):
        lexical_imitation.bm25_pairs(dataset("purple"), pairs(1), top=1)
