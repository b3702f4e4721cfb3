"""Who mines negatives, what each filter takes out, and what is counted."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from corpora.batches import Pairs
from corpora.tables import DataError, Document
from dual_encoder import negative_filters, negatives

DOCUMENTS = [
    Document(f"d{i}", "", text)
    for i, text in enumerate(["red cat", "red cat mat", "red dog", "blue sky", "red cat hat", "green"])
]
PAIRS = Pairs(np.array([0, 1]), np.array([0, 5]), np.array([[0, 4], [5, -1]]), ["q0", "q1"])


class Documents(list):
    def read(self, rows):
        return [self[row] for row in rows]


def dataset(documents=DOCUMENTS, queries=("red cat", "purple")):
    return SimpleNamespace(
        titles_and_texts=lambda: ([d.title for d in documents], [d.text for d in documents]),
        queries={f"q{i}": text for i, text in enumerate(queries)},
        documents=Documents(documents),
        doc_ids=[d.doc_id for d in documents],
    )


def test_positives_are_removed_and_the_rest_keeps_its_order():
    rows = np.array([[4, 2, 7, 1, -1], [0, 3, 2, 1, 5]])
    pairs = PAIRS._replace(positives=np.array([[2, 1], [9, -1]]))
    found = negative_filters.filtered(None, pairs, rows, count=5)
    np.testing.assert_array_equal(found.rows, [[4, 7, -1, -1, -1], [0, 3, 2, 1, 5]])
    assert found.rows.dtype == np.int32
    assert found.candidates == 9
    assert found.removed == {"known positives": 2}


def test_every_filter_sees_what_those_before_it_left_and_is_counted():
    rows = np.array([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, -1]])
    even = lambda dataset, pairs, rows_QK: rows_QK % 2 == 0  # 0 and 4 are gone before it comes to them
    even.__name__ = "even_rows"
    found = negative_filters.filtered(None, PAIRS, rows, count=2, skip=1, filters=[even])
    # The first: 0 is passed over, 4 is a positive, 2 is even. The second: 5 is passed over, 4 and 2 even.
    np.testing.assert_array_equal(found.rows, [[1, 3], [3, 1]])
    assert found.removed == {"the first 1 ranks": 2, "known positives": 1, "even rows": 3}
    assert found.lines() == [
        "11 candidates of 2 queries; kept 4, at most 2 a query; 0 queries have none",
        "  the first 1 ranks: removed 2",
        "  known positives: removed 1",
        "  even rows: removed 3",
    ]


def test_copies_of_a_positive_are_found_whatever_their_case_and_spaces():
    documents = [Document("a", "Red", "cat"), Document("b", "", " red  CAT"), Document("c", "red", "dog")]
    pairs = Pairs(np.array([0, 1]), np.array([0, 2]), np.array([[0, -1], [2, 1]]), ["q0", "q1"])
    goes = negative_filters.same_text(dataset(documents), pairs, np.array([[1, 2, -1], [0, -1, 2]]))
    np.testing.assert_array_equal(goes, [[True, False, False], [True, False, True]])


@pytest.mark.parametrize(
    ("limits", "goes"),
    [
        (
            {"share": 0.5},
            [[True, False, False], [False, False, False]],
        ),  # above 1.0, the lower positive's half
        ({"margin": 1.5}, [[True, True, False], [False, False, False]]),  # above 0.5
        ({}, [[False, False, False], [False, False, False]]),
    ],
)
def test_documents_that_a_teacher_scores_near_the_positive(limits, goes):
    scores = {(0, 0): 3.0, (0, 4): 2.0, (0, 1): 1.9, (0, 2): 0.6, (0, 3): 0.5, (1, 5): 1.0, (1, 1): -1.0}

    def scorer(dataset, query_ids, rows_QM):
        del dataset
        return np.array(
            [
                [np.nan if row < 0 else scores[int(query_id[1:]), int(row)] for row in rows]
                for query_id, rows in zip(query_ids, rows_QM, strict=True)
            ],
            np.float32,
        )

    rows = np.array([[1, 2, 3], [1, -1, -1]])
    found = negative_filters.near_positive(None, PAIRS, rows, scorer=scorer, **limits)
    np.testing.assert_array_equal(found, goes)
    with pytest.raises(ValueError, match="share is 0; it must be positive"):
        negative_filters.near_positive(None, PAIRS, rows, scorer=scorer, share=0)
    unscored = lambda dataset, query_ids, rows_QM: np.full(rows_QM.shape, np.nan)
    with pytest.raises(ValueError, match="no score to any positive"):
        negative_filters.near_positive(None, PAIRS, rows, scorer=unscored)


def test_mined_negatives_are_ranked_by_bm25_and_hold_no_positive():
    mined = negatives.bm25(dataset(), PAIRS, count=3)
    np.testing.assert_array_equal(mined.rows, [[1, 2, -1], [-1, -1, -1]])
    assert mined.removed == {"known positives": 2}
    skipped = negatives.bm25(dataset(), PAIRS, count=3, skip=3)
    np.testing.assert_array_equal(skipped.rows[0], [2, -1, -1])
    assert skipped.removed == {"the first 3 ranks": 3, "known positives": 0}
    with pytest.raises(ValueError, match="count is 0"):
        negatives.bm25(dataset(), PAIRS, count=0)
    with pytest.raises(ValueError, match="depth is 3; allowed: skip \\+ count, 4"):
        negatives.bm25(dataset(), PAIRS, count=3, skip=1, depth=3)


def test_nearest_asks_for_as_many_as_the_positives_can_take_away():
    asked = []

    def search(k):
        asked.append(k)
        return np.arange(5, 5 - k, -1)[None, :].repeat(2, axis=0)

    mined = negatives.nearest(search, None, PAIRS, count=2, skip=1)
    assert asked == [5]
    np.testing.assert_array_equal(mined.rows, [[3, 2], [4, 3]])
    assert negatives.nearest(search, None, PAIRS, count=2, depth=6).candidates == 12


def test_a_union_takes_turns_and_no_document_twice():
    first = negative_filters.Mined(np.array([[1, 2, 3], [4, -1, -1]]), 9, {"known positives": 2})
    second = negative_filters.Mined(np.array([[2, 6], [4, 5]]), 4, {"known positives": 1, "same text": 5})

    def far(dataset, pairs):
        return first

    def near(dataset, pairs):
        return second

    mined = negatives.union(None, PAIRS, count=3, sources=[far, near])
    np.testing.assert_array_equal(mined.rows, [[1, 2, 6], [4, 5, -1]])  # 1 2 2 6 3 and 4 4 5
    assert mined.candidates == 13
    assert mined.removed == {
        "far: known positives": 2,
        "near: known positives": 1,
        "near: same text": 5,
        "found before": 2,
    }
    with pytest.raises(ValueError, match="there are 0 sources"):
        negatives.union(None, PAIRS, count=3, sources=[])


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"negatives.run is '.*none'; no run there"):
        negatives.mined(dataset(), PAIRS, run=str(tmp_path / "none"), count=2)


def test_negatives_of_a_run_are_its_ranking_without_the_positives(monkeypatch):
    def vector(text):
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return np.random.default_rng(seed).normal(size=8).astype(np.float32)

    trained = SimpleNamespace(
        documents=lambda documents: (np.stack([vector(d.text) for d in documents]), np.arange(6)),
        queries=lambda texts: (np.stack([vector(text) for text in texts]), np.arange(2)),
    )
    monkeypatch.setattr(negatives, "of_run", lambda run, field: trained)
    mined = negatives.mined(dataset(), PAIRS, run="there", count=3)
    for query, text in enumerate(["red cat", "purple"]):
        scores = [vector(text) @ vector(d.text) for d in DOCUMENTS]
        best = [row for row in np.argsort(scores)[::-1] if row not in PAIRS.positives[query]]
        assert mined.rows[query].tolist() == best[:3]


def test_judged_negatives_are_the_documents_of_relevance_0_in_their_order():
    train = {"q0": {"d4": 0, "d0": 1, "d2": -1, "d5": 0}, "q1": {"d5": 2}, "other": {"d1": 0}}
    splits = {"train": train, "positive": {"q1": {"d5": 2}}}
    dataset = SimpleNamespace(
        name="toy", doc_ids=[document.doc_id for document in DOCUMENTS], split=splits.__getitem__
    )
    pairs = Pairs(np.array([0, 1]), np.array([0, 5]), np.array([[0], [5]]), ["q0", "q1"])
    found = negatives.judged(dataset, pairs, count=4)
    np.testing.assert_array_equal(found.rows, [[4, 2, 5, -1], [-1, -1, -1, -1]])
    assert (found.candidates, found.removed) == (3, {})
    np.testing.assert_array_equal(negatives.judged(dataset, pairs, count=2).rows[0], [4, 2])
    with pytest.raises(DataError, match="toy: split 'positive' judges no document not relevant"):
        negatives.judged(dataset, pairs._replace(split="positive"), count=2)
    with pytest.raises(ValueError, match="count is 0"):
        negatives.judged(dataset, pairs, count=0)
