"""A collection in two parts."""

import sys

import pytest

from corpora import beir
from corpora.tables import Document, Judgement, Query, Tables
from experiments import split_collection


def tables():
    documents = [Document(f"d{i}", "", f"text {i}") for i in range(10)]
    queries = [Query(f"q{i}", f"ask {i}") for i in range(11)]
    split = {i: ("train", "dev", "test")[i % 3] for i in range(10)}
    qrels = {
        name: [Judgement(f"q{i}", f"d{i}", 1) for i in split if split[i] == name] for name in split.values()
    }
    qrels["train"] += [Judgement("q10", f"d{i}", 1) for i in range(10)]  # for documents of both parts
    return Tables(documents, queries, qrels, {})


def test_each_document_is_on_one_side_and_no_training_query_is_for_a_later_one():
    whole = tables()
    first, later = split_collection.split(whole, 4, seed=0)
    ids = [{document.doc_id for document in part.documents} for part in (first, later)]
    assert ids[0] | ids[1] == {f"d{i}" for i in range(10)}
    assert len(ids[1]) == 4
    assert set(later.qrels) <= {"dev", "test"}
    judged = {(j.query_id, j.doc_id) for rows in later.qrels.values() for j in rows}
    assert judged == {
        (f"q{i}", f"d{i}") for i in range(10) if f"d{i}" in ids[1]
    }  # not q10, which is trained on
    for part, there in zip((first, later), ids, strict=True):
        judgements = [j for rows in part.qrels.values() for j in rows]
        assert {j.doc_id for j in judgements} <= there
        assert {j.query_id for j in judgements} == {query.query_id for query in part.queries}
    assert [document.doc_id for document in first.documents] == sorted(ids[0])  # in their order


def test_the_program_writes_both_parts(tmp_path, monkeypatch, capsys):
    beir.write(tmp_path / "whole", tables())

    def program(*arguments):
        monkeypatch.setattr(sys, "argv", ["split", f"--folder={tmp_path / 'whole'}", *arguments])
        try:
            split_collection.main()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    status, out = program(f"--to={tmp_path / 'parts'}", "--documents=3")
    assert status == 0
    assert f"{tmp_path / 'parts' / 'later'}: 3 documents" in out
    assert len(beir.read(tmp_path / "parts" / "first").documents) == 7
    assert program("--documents=10", f"--to={tmp_path}") == (2, "error: --documents is 10; allowed: 1 to 9\n")
    assert program() == (2, "error: --to is missing\n")


def test_a_side_without_a_judged_query_is_refused():
    whole = tables()
    bare = Tables(whole.documents, whole.queries, {"test": [Judgement("q0", "d0", 1)]}, {})
    with pytest.raises(ValueError, match="no query judges a document of"):
        split_collection.split(bare, 4, seed=0)
