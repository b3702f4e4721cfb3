from types import SimpleNamespace

import numpy as np
import pytest

from corpora.batches import Pairs
from corpora.tables import DataError, Document
from dual_encoder import negatives

DOCUMENTS = [
    Document(f"d{i}", "", text)
    for i, text in enumerate(["red cat", "red cat mat", "red dog", "blue sky", "red cat hat", "green"])
]


def test_positives_are_dropped_and_the_rest_keeps_its_order():
    rows = np.array([[4, 2, 7, 1, -1], [0, 3, 2, 1, 5]])
    positives = np.array([[2, 1], [9, -1]])
    np.testing.assert_array_equal(
        negatives.drop_positives(rows, positives), [[4, 7, -1, -1, -1], [0, 3, 2, 1, 5]]
    )


def test_mined_negatives_are_ranked_by_bm25_and_hold_no_positive():
    dataset = SimpleNamespace(
        titles_and_texts=lambda: ([d.title for d in DOCUMENTS], [d.text for d in DOCUMENTS]),
        queries={"q0": "red cat", "q1": "purple"},
    )
    pairs = Pairs(np.array([0, 1]), np.array([0, 5]), np.array([[0, 4], [5, -1]]), ["q0", "q1"])
    mined = negatives.bm25(dataset, pairs, count=3)
    np.testing.assert_array_equal(mined, [[1, 2, -1], [-1, -1, -1]])
    skipped = negatives.bm25(dataset, pairs, count=3, skip=3)
    np.testing.assert_array_equal(skipped[0], [2, -1, -1])
    with pytest.raises(ValueError, match="count is 0"):
        negatives.bm25(dataset, pairs, count=0)


def test_judged_negatives_are_the_documents_of_relevance_0_in_their_order():
    train = {"q0": {"d4": 0, "d0": 1, "d2": -1, "d5": 0}, "q1": {"d5": 2}, "other": {"d1": 0}}
    splits = {"train": train, "positive": {"q1": {"d5": 2}}}
    dataset = SimpleNamespace(
        name="toy", doc_ids=[document.doc_id for document in DOCUMENTS], split=splits.__getitem__
    )
    pairs = Pairs(np.array([0, 1]), np.array([0, 5]), np.array([[0], [5]]), ["q0", "q1"])
    np.testing.assert_array_equal(
        negatives.judged(dataset, pairs, count=4), [[4, 2, 5, -1], [-1, -1, -1, -1]]
    )
    np.testing.assert_array_equal(negatives.judged(dataset, pairs, count=2)[0], [4, 2])
    with pytest.raises(DataError, match="toy: split 'positive' judges no document not relevant"):
        negatives.judged(dataset, pairs._replace(split="positive"), count=2)
    with pytest.raises(ValueError, match="count is 0"):
        negatives.judged(dataset, pairs, count=0)
