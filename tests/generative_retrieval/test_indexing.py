"""What is mapped to docids, by hand."""

import json

import numpy as np
import pytest

from corpora.tables import DataError, Document
from generative_retrieval import indexing


class Numbers:
    """A tokenizer of numbers written out."""

    pad_id, cls_id, sep_id = 0, 1, 2

    def encode(self, texts, limit):
        return [[int(word) for word in text.split()][:limit] for text in texts]


@pytest.fixture
def source():
    documents = [
        Document("a", "5", "10 11 12 13 14 15 16"),
        Document("b", "", "20 21"),
        Document("c", "6", "30 31"),
    ]
    return indexing.Source(
        documents=documents,
        rows=np.array([0, 2], np.int32),
        doc_ids=["a", "b", "c"],
        queries=["40 41", "42", "43"],
        query_documents=np.array([2, 0, 1], np.int32),
        tokenizer=Numbers(),
        length=4,
    )


def rows_of(examples):
    held = examples.tokens
    texts = [held.tokens[a:b].tolist() for a, b in zip(held.offsets[:-1], held.offsets[1:], strict=True)]
    return list(zip(texts, examples.document_rows.tolist(), strict=True))


def test_first_tokens_chunks_and_queries_of_the_documents_that_are_indexed(source):
    assert rows_of(indexing.first_tokens(source)) == [([5, 10, 11, 12], 0), ([6, 30, 31], 2)]
    chunks = [([5, 10, 11, 12], 0), ([5, 13, 14, 15], 0), ([5, 16], 0), ([6, 30, 31], 2)]
    assert rows_of(indexing.chunks(source)) == chunks
    assert rows_of(indexing.queries(source)) == [([40, 41], 2), ([42], 0)]


def test_generated_queries_come_from_a_file(source, tmp_path):
    file = tmp_path / "queries.jsonl"
    lines = [{"doc_id": "c", "text": "50 51"}, {"doc_id": "b", "text": "52"}, {"doc_id": "a", "text": "53"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert rows_of(indexing.generated(source, file=str(file))) == [([50, 51], 2), ([53], 0)]
    file.write_text('{"doc_id": "b", "text": "52"}\n{"text": "1"}\n')
    with pytest.raises(DataError, match=r"queries.jsonl:2: no JSON object with doc_id and text"):
        indexing.generated(source, file=str(file))
    file.write_text('{"doc_id": "b", "text": "52"}\n')
    assert len(indexing.generated(source, file=str(file))) == 0  # a document that is there, but not indexed
    file.write_text('{"doc_id": "a", "text": 5}\n')
    with pytest.raises(
        DataError, match=r"queries.jsonl:1: no JSON object with doc_id and text, both strings"
    ):
        indexing.generated(source, file=str(file))
    file.write_text('{"doc_id": "other", "text": "52"}\n')
    with pytest.raises(DataError, match="no query for a document"):
        indexing.generated(source, file=str(file))


def test_a_batch_has_texts_and_ids(source):
    examples = [indexing.first_tokens(source), indexing.queries(source)]
    make = indexing.batches(examples, np.array([[1, 2], [2, 1], [3, -1]], np.int32), length=4, seed=0)
    batch = make(np.array([3, 1, 0]), 0)
    assert batch["tokens"].tolist() == [[42, 0, 0, 0], [6, 30, 31, 0], [5, 10, 11, 12]]
    assert batch["mask"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["segments"].tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]  # a title's tokens
    assert batch["documents"].tolist() == [0, 2, 0]
    assert batch["targets"].tolist() == [[1, 2], [3, 0], [1, 2]]
    assert batch["target_mask"].tolist() == [[1, 1], [1, 0], [1, 1]]
    part = make(np.array([3, 1, 0]), 0, slice(1, 2))
    assert all((part[name] == batch[name][1:2]).all() for name in batch)


def test_spans_are_drawn_anew_and_stay_within_their_document(source):
    examples = indexing.random_spans(source, span=3)
    make = indexing.batches([examples], np.array([[1], [2], [3]], np.int32), length=4, seed=1)
    whole = [5, *range(10, 17)]
    runs = {tuple(make(np.array([0]), step)["tokens"][0, :3].tolist()) for step in range(200)}
    assert runs == {tuple(whole[start : start + 3]) for start in range(6)}
    assert make(np.array([1]), 0)["tokens"].tolist() == [[6, 30, 31, 0]]
    same = make(np.array([0]), 7)
    assert (make(np.array([1, 0]), 7)["tokens"][1] == same["tokens"][0]).all()
    with pytest.raises(ValueError, match="span is 5; allowed: 1 to 4"):
        indexing.random_spans(source, span=5)
