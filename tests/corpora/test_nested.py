"""corpora.sources.nested: parts of a collection, judged by the same queries."""

import itertools
import json

import pytest

from corpora.sources import nested
from corpora.tables import DataError, Document, Judgement, Query, Tables

TABLES = Tables(
    documents=[Document(f"d{i}", "", f"text {i}") for i in range(20)],
    queries=[Query(f"{split}{i}", "a question") for split in ("train", "dev", "test") for i in range(20)],
    qrels={
        split: [Judgement(f"{split}{i}", f"d{i}", 1) for i in range(20)] for split in ("train", "dev", "test")
    }
    | {"extra": [Judgement("train0", "d3", 1)]},
    counts={"duplicates": 2},
)


def ids(tables, split):
    return {row.query_id for row in tables.qrels[split]}


def documents(tables):
    return [document.doc_id for document in tables.documents]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parts_lie_within_one_another_and_keep_their_queries(seed):
    sizes = (7, 12, 0)
    parts = [nested.part(TABLES, size, {"dev": 2, "test": 3}, seed=seed) for size in sizes]
    assert [len(part.documents) for part in parts] == [7, 12, 20]
    for smaller, larger in itertools.pairwise(parts):
        assert set(documents(smaller)) < set(documents(larger))
        for split, count in (("dev", 2), ("test", 3)):
            assert smaller.qrels[split] == larger.qrels[split]
            assert len(ids(smaller, split)) == count
    for part in parts:
        kept = documents(part)
        assert kept == [name for name in documents(TABLES) if name in kept]  # in the order of the whole
        assert {row.doc_id for split in ("dev", "test") for row in part.qrels[split]} <= set(kept)
        assert [row.doc_id for row in part.qrels["train"]] == kept  # of each document its own query
        assert {query.query_id for query in part.queries} == set().union(
            *({row.query_id for row in rows} for rows in part.qrels.values())
        )
        assert part.counts == {"duplicates": 2, "documents_left_out": 20 - len(kept)}


def test_another_seed_draws_others():
    drawn = [documents(nested.part(TABLES, 8, {"dev": 2, "test": 2}, seed=seed)) for seed in (0, 1)]
    assert drawn[0] != drawn[1]


def test_judged_documents_can_come_first():
    half = Tables(TABLES.documents, TABLES.queries, {"train": TABLES.qrels["train"][:10]})
    first = nested.part(half, 10, {}, judged_first=True)
    assert documents(first) == [f"d{i}" for i in range(10)]
    more = nested.part(half, 12, {}, judged_first=True)
    assert set(documents(first)) < set(documents(more))
    assert len(nested.part(half, 10, {}).qrels["train"]) < 10


def test_all_is_all():
    assert nested.part(TABLES, 0, {"dev": 0, "test": 0}) == Tables(
        TABLES.documents, TABLES.queries, TABLES.qrels, {"duplicates": 2, "documents_left_out": 0}
    )


@pytest.mark.parametrize(
    ("size", "queries", "said"),
    [
        (21, {"test": 1}, "data.documents is 21; allowed: 1, those judged"),
        (2, {"test": 3}, "data.documents is 2; allowed: 3, those judged"),
        (5, {"test": 21}, "data.test is 21; allowed: 1 to 20 queries, or 0"),
        (5, {"other": 1}, "data.other is 1; allowed: 1 to 0 queries"),
    ],
)
def test_what_there_is_not_is_refused(size, queries, said):
    with pytest.raises(DataError, match=said):
        nested.part(TABLES, size, queries)


def test_it_is_prepared_apart_from_the_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVAX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "corpus.jsonl").write_text(
        lines({"_id": doc.doc_id, "title": "", "text": doc.text} for doc in TABLES.documents)
    )
    (folder / "queries.jsonl").write_text(
        lines({"_id": query.query_id, "text": query.text} for query in TABLES.queries)
    )
    for split in ("train", "dev", "test"):
        rows = "".join(f"{q}\t{d}\t{r}\n" for q, d, r in TABLES.qrels[split])
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    small = nested.load(folder=str(folder), documents=6, dev=2, test=2)
    large = nested.load(folder=str(folder), documents=9, dev=2, test=2)
    assert (len(small.documents), len(large.documents)) == (6, 9)
    assert small.split("test") == large.split("test")
    assert set(small.doc_ids) < set(large.doc_ids)
    assert "documents left out 14" in small.summary()
