"""corpora.sources.joined: several collections as one, whose ids say which they are from."""

import json

import pytest

from corpora.batches import training_pairs
from corpora.sources import joined
from corpora.tables import DataError, Document, Judgement, Query, Tables
from dual_encoder import topics


def collection(folder, texts, splits):
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        rows = [{"_id": f"{n}", "title": "", "text": f"{name} {text}"} for n, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split in splits:
        lines = "".join(f"{n}\t{n}\t1\n" for n in range(len(texts)))
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")


def test_ids_are_prefixed_and_splits_joined():
    one = Tables(
        [Document("a", "t", "x")], [Query("q", "who")], {"train": [Judgement("q", "a", 1)]}, {"n": 2}
    )
    two = Tables(
        [Document("a", "", "y")],
        [Query("q", "what")],
        {"train": [Judgement("q", "a", 0)], "dev": [Judgement("q", "a", 2)]},
        {"n": 3},
    )
    found = joined.joined({"first": one, "second": two})
    assert found.documents == [Document("first/a", "t", "x"), Document("second/a", "", "y")]
    assert found.queries == [Query("first/q", "who"), Query("second/q", "what")]
    assert found.qrels == {
        "train": [Judgement("first/q", "first/a", 1), Judgement("second/q", "second/a", 0)],
        "dev": [Judgement("second/q", "second/a", 2)],
    }
    assert found.counts == {"n": 5}


def test_it_is_prepared_read_back_and_grouped_by_collection(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVAX_CACHE", str(tmp_path / "cache"))
    collection(tmp_path / "zoo", ["cat", "dog"], ["train", "dev"])
    collection(tmp_path / "sea", ["fish", "crab", "kelp"], ["train"])
    folders = [str(tmp_path / "zoo"), str(tmp_path / "sea")]
    found = joined.load(folders=folders)
    assert found.doc_ids == ["zoo/0", "zoo/1", "sea/0", "sea/1", "sea/2"]
    assert found.queries["sea/1"] == "queries crab"
    assert list(found.qrels["dev"]) == ["zoo/0", "zoo/1"]
    pairs = training_pairs(found, "train")
    groups = topics.collections(found, pairs)
    of = {pairs.query_ids[row]: int(group) for row, group in zip(pairs.query_rows, groups, strict=True)}
    assert of == {"zoo/0": 1, "zoo/1": 1, "sea/0": 0, "sea/1": 0, "sea/2": 0}  # sea before zoo
    (tmp_path / "sea" / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"{n}", "text": "other"}) + "\n" for n in range(3))
    )
    assert joined.load(folders=folders).queries["sea/1"] == "other"  # never served stale
    with pytest.raises(DataError, match=r"data.folders is .*; allowed: two or more, whose names differ"):
        joined.load(folders=[folders[0], folders[0]])
    with pytest.raises(ValueError, match="the query '0' is of no collection"):
        topics.collections(found, pairs._replace(query_ids=["0"] * 5))
