import numpy as np
import pytest

from corpora import tokenizer, tokens
from corpora.tables import Document
from corpora.tokens import TEXT, TITLE, TextSettings


@pytest.fixture(scope="module")
def words():
    return tokenizer.train_wordpiece(["alpha beta gamma delta"] * 5, vocab_size=100)


def ids(words, text):
    return words.encode([text], 100)[0]


def test_rows_by_hand(words):
    a, b, c = (ids(words, w)[0] for w in ("alpha", "beta", "gamma"))
    table = tokens.tokenize(
        words, [("alpha", "beta gamma"), ("", ""), ("", "gamma")], max_length=4, special_tokens=False
    )
    got = table.rectangle(np.array([0, 1, 2, -1]), 4)
    np.testing.assert_array_equal(got["tokens"], [[a, b, c, 0], [0] * 4, [c, 0, 0, 0], [0] * 4])
    np.testing.assert_array_equal(got["mask"], [[1, 1, 1, 0], [0] * 4, [1, 0, 0, 0], [0] * 4])
    np.testing.assert_array_equal(got["segments"][0], [TITLE, TEXT, TEXT, TEXT])
    assert {x.dtype for x in got.values()} == {np.dtype(np.int32)}


def test_special_tokens_frame_title_and_text(words):
    a, b, c = (ids(words, w)[0] for w in ("alpha", "beta", "gamma"))
    table = tokens.tokenize(
        words, [("alpha", "beta gamma"), ("", "beta")], max_length=10, special_tokens=True
    )
    got = table.rectangle(np.array([0, 1]), 6)
    cls, sep = words.cls_id, words.sep_id
    np.testing.assert_array_equal(got["tokens"], [[cls, a, sep, b, c, sep], [cls, b, sep, 0, 0, 0]])
    np.testing.assert_array_equal(got["segments"], [[0, 1, 1, 0, 0, 0], [0] * 6])


@pytest.mark.parametrize(
    ("special_tokens", "expected"), [(False, [1, 2, 2, 0]), (True, [0, 1, 1, 2, 2, 0, 0])]
)
def test_the_lead_is_a_segment_of_its_own(words, special_tokens, expected):
    table = tokens.tokenize(
        words,
        [("alpha", "beta gamma delta"), ("", "beta")],
        max_length=9,
        special_tokens=special_tokens,
        lead_length=2,
    )
    np.testing.assert_array_equal(table.segments[: len(expected)], expected)
    second = table.segments[len(expected) :]
    np.testing.assert_array_equal(second, [0, 2, 0] if special_tokens else [2])
    assert len(table.segments) == len(table.tokens)


@pytest.mark.parametrize("special_tokens", [False, True])
@pytest.mark.parametrize("max_length", [4, 5, 7])
def test_long_rows_are_cut_and_keep_their_end(words, max_length, special_tokens):
    table = tokens.tokenize(
        words, [("alpha " * 6, "beta " * 6)], max_length=max_length, special_tokens=special_tokens
    )
    row = table.rectangle(np.array([0]), max_length)["tokens"][0]
    assert len(table.tokens) == max_length
    if special_tokens:
        assert (row[0], row[-1]) == (words.cls_id, words.sep_id)


def test_a_shorter_rectangle_cuts(words):
    table = tokens.tokenize(words, [("", "alpha beta gamma")], max_length=10, special_tokens=False)
    np.testing.assert_array_equal(table.rectangle(np.array([0]), 2)["tokens"], [ids(words, "alpha beta")])


def test_no_tokens_at_all(words):
    table = tokens.tokenize(words, [("", ""), ("", "")], max_length=4, special_tokens=False)
    got = table.rectangle(np.array([1, 0]), 3)
    np.testing.assert_array_equal(got["mask"], np.zeros((2, 3)))
    empty = tokens.tokenize(words, [], max_length=4, special_tokens=False)
    np.testing.assert_array_equal(empty.rectangle(np.array([-1]), 2)["mask"], [[0, 0]])
    assert len(tokens.tokenize(words, [], max_length=4, special_tokens=False)) == 0


def test_a_length_without_room_is_refused(words):
    with pytest.raises(ValueError, match="max_length is 3; it must be at least 4"):
        tokens.tokenize(words, [("", "alpha")], max_length=3, special_tokens=True)


def test_settings_treat_the_sides_apart(words):
    settings = TextSettings(query_length=1, document_length=3)
    assert len(settings.queries(words, ["alpha beta"]).tokens) == 1
    table = settings.documents(words, [Document("d", "alpha", "beta gamma delta")])
    np.testing.assert_array_equal(table.segments, [TITLE, TEXT, TEXT])
