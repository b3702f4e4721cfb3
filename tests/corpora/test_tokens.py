import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora import tokenizer, tokens
from corpora.tables import Document
from corpora.tokens import TEXT, TITLE, TextSettings


@pytest.fixture(scope="module")
def words():
    return tokenizer.train_wordpiece(["alpha beta gamma delta"] * 5, vocab_size=100)


MANY = [first + second for first in "abcdefg" for second in "hijklm"]


@pytest.fixture(scope="module")
def many_words():
    return tokenizer.train_wordpiece([" ".join(["aa", *MANY])] * 5, vocab_size=200)


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
    table = settings.passages(words, [Document("d", "alpha", "beta gamma delta")])
    np.testing.assert_array_equal(table.segments, [TITLE, TEXT, TEXT])


def test_a_template_is_tokenized_as_one_string_and_keeps_segments(words):
    settings = TextSettings(
        query_length=9,
        document_length=9,
        special_tokens=True,
        lead_length=1,
        query_template="gamma: {text}",
        document_template="delta {title} - {text}",
    )
    queries = settings.queries(words, ["alpha beta", ""])
    whole = [words.cls_id, *ids(words, "gamma: alpha beta"), words.sep_id]
    np.testing.assert_array_equal(queries.rectangle([0], len(whole))["tokens"], [whole])
    assert not queries.segments.any()
    documents = settings.passages(words, [Document("d", "alpha alpha", "beta gamma")])
    expected = [words.cls_id, *ids(words, "delta alpha alpha - beta gamma"), words.sep_id]
    np.testing.assert_array_equal(documents.tokens, expected)
    # [CLS], delta, alpha alpha, -, beta gamma, [SEP]
    np.testing.assert_array_equal(
        documents.segments, [TEXT, TEXT, TITLE, TITLE, TEXT, tokens.LEAD, TEXT, TEXT]
    )


def test_of_a_template_the_text_is_cut_and_not_what_follows_it(words):
    settings = TextSettings(query_length=9, document_length=4, document_template="{text} {title}")
    documents = settings.passages(words, [Document("d", "delta", "alpha beta gamma alpha")])
    np.testing.assert_array_equal(documents.tokens, ids(words, "alpha beta gamma delta"))
    np.testing.assert_array_equal(documents.segments, [TEXT, TEXT, TEXT, TITLE])


def test_passages_by_hand(words):
    a, b, c, d = (ids(words, w)[0] for w in ("alpha", "beta", "gamma", "delta"))
    settings = TextSettings(query_length=9, document_length=4, lead_length=1, passage_stride=2)
    documents = [
        Document("0", "delta", "alpha beta gamma alpha beta gamma"),  # windows of 3 that begin at 0, 2, 4
        Document("1", "", "beta"),
        Document("2", "delta delta delta", "alpha beta gamma"),  # a title of half a passage: windows of 2
        Document("3", "delta delta delta", "alpha"),  # all of it fits
        Document("4", "", ""),
    ]
    table = settings.passages(words, documents)
    expected = [[d, a, b, c], [d, c, a, b], [d, b, c], [b], [d, d, a, b], [d, d, c], [d, d, d, a], []]
    got = table.rectangle(np.arange(len(expected)), 4)
    for row, mask, wanted in zip(got["tokens"], got["mask"], expected, strict=True):
        assert row[mask > 0].tolist() == wanted
    np.testing.assert_array_equal(table.document_of_row, [0, 0, 0, 1, 2, 2, 3, 4])
    np.testing.assert_array_equal(table.first_row, [0, 3, 4, 6, 7, 8])
    np.testing.assert_array_equal(table.text_lengths(), [4, 1, 4, 4, 0])
    # Only the first passage begins with the lead of the text.
    np.testing.assert_array_equal(got["segments"][:2], [[TITLE, tokens.LEAD, 0, 0], [TITLE, 0, 0, 0]])


@given(
    lengths=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40)), min_size=1, max_size=4),
    document_length=st.integers(4, 14),
    stride=st.integers(1, 14),
    special_tokens=st.booleans(),
)
def test_passages_cover_every_token_of_every_text(
    many_words, lengths, document_length, stride, special_tokens
):
    settings = TextSettings(
        query_length=9,
        document_length=document_length,
        special_tokens=special_tokens,
        passage_stride=min(stride, document_length),
    )
    texts = [("aa " * t, " ".join(MANY[:n])) for t, n in lengths]
    table = settings.passages(many_words, [Document("d", *pair) for pair in texts])
    assert np.diff(table.offsets).max(initial=0) <= document_length
    for number, (_, text) in enumerate(texts):
        seen, begins = [], 0
        for row in np.flatnonzero(table.document_of_row == number):
            at = slice(table.offsets[row], table.offsets[row + 1])
            body = table.tokens[at][table.segments[at] == TEXT].tolist()
            body = body[1:-1] if special_tokens else body
            if seen:  # this one begins after the one before, and leaves nothing out
                start = seen.index(body[0]) if body[0] in seen else len(seen)
                assert begins < start
                assert seen[start:] == body[: len(seen) - start]
                begins, seen = start, seen[:start] + body
            else:
                seen = body
        assert seen == ids(many_words, text)


def test_a_document_draws_each_of_its_passages_alike(words):
    settings = TextSettings(query_length=9, document_length=2, passage_stride=1)
    table = settings.passages(words, [Document("0", "", "alpha beta gamma delta"), Document("1", "", "beta")])
    documents = np.array([[0, 1, -1]] * 300)
    rows = table.draw(documents, np.random.default_rng(0).integers(0, 2**64, documents.shape, np.uint64))
    np.testing.assert_array_equal(np.unique(rows[:, 0], return_counts=True)[0], [0, 1, 2])
    assert np.unique(rows[:, 0], return_counts=True)[1].min() > 70
    np.testing.assert_array_equal(rows[:, 1:], [[3, -1]] * 300)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"passage_stride": 9}, "passage_stride is 9; allowed: 0 to 8, the document_length"),
        ({"passage_stride": -1}, "passage_stride is -1"),
        ({"query_template": "{title}{text}"}, r"query_template is .*no field \{title\}"),
        ({"document_template": "passage: "}, r"document_template is 'passage: ': \{text\} occurs 0 times"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TextSettings(query_length=4, document_length=8, **fields)
