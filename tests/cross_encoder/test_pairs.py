"""Query and document as one row: what stands where, what is marked, and batches by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import batches as contrastive
from corpora import tokenizer as tokenizers
from corpora.tables import Document
from cross_encoder import pairs
from cross_encoder.pairs import DOCUMENT, DOCUMENT_MATCH, QUERY, QUERY_MATCH, PairSettings

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
QUERIES = ["alpha beta", "gamma", "delta alpha zeta beta gamma"]
DOCUMENTS = [
    Document("d0", "beta", "gamma alpha"),
    Document("d1", "", "delta"),
    Document("d2", "zeta", "epsilon epsilon delta beta alpha gamma"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train_wordpiece([" ".join(WORDS)] * 5, vocab_size=100)


def words(tokenizer, ids):
    names = {**{tokenizer.encode([w], 1)[0][0]: w for w in WORDS}, tokenizer.cls_id: "[CLS]"}
    names[tokenizer.sep_id] = "[SEP]"
    return [names[i] for i in ids]


def made(tokenizer, **fields):
    text = PairSettings(**{"query_length": 5, "document_length": 6, **fields})
    return text.table(tokenizer, QUERIES, DOCUMENTS)


def test_a_row_is_query_title_and_text_in_the_frame(tokenizer):
    table = made(tokenizer)
    found = table.rectangle(np.array([0, 2]), np.array([0, 2]), 12)
    rows = [words(tokenizer, ids[mask > 0]) for ids, mask in zip(found["tokens"], found["mask"], strict=True)]
    assert rows[0] == ["[CLS]", "alpha", "beta", "[SEP]", "beta", "gamma", "alpha", "[SEP]"]
    # Both are cut: the query to 5 tokens with its two signs, the document to 6 with its one.
    expected = "[CLS] delta alpha zeta [SEP] zeta epsilon epsilon delta beta [SEP]"
    assert " ".join(rows[1]) == expected
    np.testing.assert_array_equal(found["mask"].sum(1), [8, 11])
    np.testing.assert_array_equal(found["segments"][0], [QUERY] * 4 + [DOCUMENT] * 4 + [QUERY] * 4)
    assert (found["tokens"][found["mask"] == 0] == tokenizer.pad_id).all()


def test_tokens_of_both_sides_are_marked(tokenizer):
    found = made(tokenizer, mark_matches=True).rectangle(np.array([0, 1]), np.array([2, 1]), 11)
    # [CLS] alpha beta [SEP] zeta epsilon epsilon delta beta [SEP]; neither sign counts, nor padding.
    expected = [QUERY, QUERY, QUERY_MATCH, QUERY, *[DOCUMENT] * 4, DOCUMENT_MATCH, DOCUMENT, QUERY]
    np.testing.assert_array_equal(found["segments"][0], expected)
    np.testing.assert_array_equal(found["segments"][1][:5], [QUERY] * 3 + [DOCUMENT] * 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 2)), min_size=1, max_size=6), st.booleans())
def test_rows_do_not_depend_on_the_rows_beside_them(drawn, mark):
    table = made(tokenizers.train_wordpiece([" ".join(WORDS)] * 5, vocab_size=100), mark_matches=mark)
    queries, documents = np.array(drawn).T
    together = table.rectangle(queries, documents, 11)
    for row, (query, document) in enumerate(drawn):
        alone = table.rectangle(np.array([query]), np.array([document]), 11)
        for name, x in alone.items():
            np.testing.assert_array_equal(together[name][row], x[0])
    np.testing.assert_array_equal(together["mask"].sum(1), table.lengths(queries, documents))
    np.testing.assert_array_equal(together["mask"].any(1), documents >= 0)


@pytest.fixture(scope="module")
def make_batch(tokenizer):
    training = contrastive.Pairs(
        np.array([0, 1, 2]), np.array([0, 1, 2]), np.array([[0], [1], [2]]), ["q0", "q1", "q2"]
    )
    negatives = np.array([[1, 2], [0, -1], [-1, -1]], np.int32)

    def make(count=2, seed=3):
        return pairs.batches(
            training,
            made(tokenizer),
            length=11,
            negatives=negatives,
            negatives_per_query=count,
            seed=seed,
        )

    return make


def test_a_batch_lists_the_relevant_document_first(make_batch):
    batch = make_batch()(np.array([0, 1, 2]), 4)
    assert batch["tokens"].shape == (3, 3, 11)
    np.testing.assert_array_equal(batch["document_rows"][:, 0], [0, 1, 2])
    assert set(batch["document_rows"][0, 1:]) == {1, 2}
    np.testing.assert_array_equal(batch["document_rows"][1:, 1:], [[0, -1], [-1, -1]])
    np.testing.assert_array_equal(batch["mask"].any(-1), batch["document_rows"] >= 0)


def test_a_part_is_the_rows_of_the_whole_and_steps_differ(make_batch):
    whole, part = (make_batch(1)(np.array([2, 0, 1]), 1, p) for p in (slice(None), np.array([0, 2])))
    for name, x in part.items():
        np.testing.assert_array_equal(x, whole[name][[0, 2]])
    drawn = {int(make_batch(1)(np.array([0]), step)["document_rows"][0, 1]) for step in range(20)}
    assert drawn == {1, 2}


@pytest.mark.parametrize("count", [0, 3])
def test_as_many_negatives_as_are_listed(make_batch, count):
    with pytest.raises(ValueError, match=f"negatives_per_query is {count}; allowed: 1 to 2"):
        make_batch(count)


@pytest.mark.parametrize("field", ["query_length", "document_length"])
def test_a_length_leaves_room(field):
    with pytest.raises(ValueError, match=f"{field} is 3; it must be at least 4"):
        PairSettings(**{"query_length": 8, "document_length": 8, field: 3})
