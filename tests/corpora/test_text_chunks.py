"""Documents as chunks: by hand, and nothing is lost, doubled or put into another document's chunk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import text_chunks
from corpora.tables import Document

WORDS = {f"w{number}": number for number in range(10, 60)}


class Words:
    """A tokenizer whose tokens are words."""

    pad_id, cls_id, sep_id = 0, 1, 2

    def encode(self, texts, max_length):
        return [[WORDS[word] for word in text.split()][:max_length] for text in texts]


def test_by_hand():
    documents = [
        Document("a", "w10 w11", "w12 w13 w14"),  # with the end token six tokens: chunks of 4 and 2
        Document("b", "", ""),  # none
        Document("c", "", "w15 w16 w17"),  # four tokens: one whole chunk
    ]
    table = text_chunks.cut(Words(), documents, 4)
    assert len(table) == 3
    assert table.document_of_chunk.tolist() == [0, 0, 2]
    found = table.rectangle(np.array([1, 2, -1, 0]), 5)
    assert found["targets"].tolist() == [
        [14, 2, 0, 0, 0], [15, 16, 17, 2, 0], [0, 0, 0, 0, 0], [10, 11, 12, 13, 0]
    ]  # fmt: skip
    assert found["tokens"].tolist() == [
        [1, 14, 0, 0, 0], [1, 15, 16, 17, 0], [0, 0, 0, 0, 0], [1, 10, 11, 12, 0]
    ]  # fmt: skip
    assert found["mask"].tolist() == [
        [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]
    ]  # fmt: skip
    assert {array.dtype for array in found.values()} == {np.dtype(np.int32)}


TEXT = st.lists(st.sampled_from(sorted(WORDS)), max_size=12).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), max_size=6), st.integers(2, 7))
def test_chunks_of_a_document_put_together_are_the_document(texts, length):
    documents = [Document(str(number), *pair) for number, pair in enumerate(texts)]
    table = text_chunks.cut(Words(), documents, length)
    found = table.rectangle(np.arange(len(table)), length)
    for number, document in enumerate(documents):
        rows = np.flatnonzero(table.document_of_chunk == number)
        ids = [WORDS[word] for word in f"{document.title} {document.text}".split()]
        kept = found["targets"][rows][found["mask"][rows].astype(bool)].tolist()
        assert kept == ([*ids, Words.sep_id] if ids else [])
        assert (found["mask"][rows[:-1]] == 1).all()  # only the last of a document is short


def test_errors():
    with pytest.raises(ValueError, match="length is 1; it must be at least 2"):
        text_chunks.cut(Words(), [], 1)
    table = text_chunks.cut(Words(), [Document("a", "", "w10 w11 w12")], 4)
    with pytest.raises(ValueError, match="length is 3; allowed: at least 4"):
        table.rectangle(np.array([0]), 3)
