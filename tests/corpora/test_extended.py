"""A collection and more documents behind it."""

import json

import pytest

from corpora import beir, extended
from corpora.sources import beir_folder
from corpora.tables import DataError, Document, Judgement, Query, Tables


@pytest.fixture
def first(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVAX_CACHE", str(tmp_path / "cache"))
    documents = [Document(f"d{i}", "", f"text {i}") for i in range(3)]
    qrels = {"train": [Judgement("q", "d0", 1)], "test": [Judgement("r", "d1", 2)]}
    beir.write(tmp_path / "first", Tables(documents, [Query("q", "ask"), Query("r", "tell")], qrels, {}))
    return beir_folder.load(folder=str(tmp_path / "first"))


def test_documents_of_a_folder_come_behind_with_their_queries(first, tmp_path):
    documents = [Document("e0", "title", "new"), Document("e1", "", "newer")]
    qrels = {"test": [Judgement("r", "e1", 1), Judgement("s", "e0", 1)]}
    beir.write(tmp_path / "more", Tables(documents, [Query("r", "tell"), Query("s", "say")], qrels, {}))
    whole = extended.load(of=first, documents=str(tmp_path / "more"))
    assert whole.doc_ids == ["d0", "d1", "d2", "e0", "e1"]
    assert list(whole.documents) == [*first.documents, *documents]
    assert whole.documents.read([4, 0, 3, 4]) == [
        documents[1],
        first.documents[0],
        documents[0],
        documents[1],
    ]
    assert whole.documents[3] == documents[0]
    assert whole.documents[2:4] == [first.documents[2], documents[0]]
    assert whole.queries == {"q": "ask", "r": "tell", "s": "say"}
    assert whole.qrels == {"train": {"q": {"d0": 1}}, "test": {"r": {"d1": 2, "e1": 1}, "s": {"e0": 1}}}
    assert first.qrels["test"] == {"r": {"d1": 2}}  # as it was
    assert whole.corpus_hash != first.corpus_hash
    assert whole.titles_and_texts()[0] == ["", "", "", "title", ""]


def test_a_file_of_documents_is_enough_and_can_be_added_to(first, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"_id": name, "text": f"of {name}"}) + "\n")
    once = extended.load(of=first, documents=str(tmp_path / "a.jsonl"))
    twice = extended.load(of=once, documents=str(tmp_path / "b.jsonl"))
    assert [document.doc_id for document in twice.documents.read([4, 3, 0])] == ["b", "a", "d0"]
    assert twice.qrels == first.qrels
    with pytest.raises(DataError, match=r"a\.jsonl: 1 of its documents are there already: a"):
        extended.load(of=twice, documents=str(tmp_path / "a.jsonl"))


def test_what_does_not_fit_is_refused(first, tmp_path):
    with pytest.raises(DataError, match="no folder '/nowhere'"):
        extended.load(of=first, documents="/nowhere")
    qrels = {"test": [Judgement("q", "e", 1)]}
    beir.write(tmp_path / "more", Tables([Document("e", "", "x")], [Query("q", "other")], qrels, {}))
    with pytest.raises(DataError, match="query 'q' has another text"):
        extended.load(of=first, documents=str(tmp_path / "more"))
