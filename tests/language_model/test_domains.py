"""Collections as domains: documents held out by their id, chunks by domain, batches."""

from pathlib import Path

import numpy as np
import pytest

from corpora.dataset import Dataset, Rows
from corpora.tables import DataError, Document
from language_model import domains
from training.build import SpecError, build


class Letters:
    """A tokenizer whose tokens are letters."""

    pad_id, cls_id, sep_id = 0, 1, 2

    def encode(self, texts, max_length):
        return [[ord(letter) for letter in text][:max_length] for text in texts]


class Source(list):
    def __getitems__(self, rows):
        return [self[row] for row in rows]


def collection(prefix, count, text="{} is here"):
    documents = [Document(f"{prefix}{i}", "", text.format(f"{prefix}{i}")) for i in range(count)]
    source = Source({k: v.encode() for k, v in document._asdict().items()} for document in documents)
    ids = [document.doc_id for document in documents]
    return Dataset(prefix, Path(prefix), f"{prefix}{count}", Rows(source, Document), ids, {}, {}, {})


def make(**fields):
    return domains.held_out({"b": collection("b", 40), "a": collection("a", 20)}, **fields)


def test_documents_are_parted_and_domains_ordered_by_name():
    of = make(dev=0.1, test=0.2)
    assert of.names == ["a", "b"]
    for domain, size in (("a", 20), ("b", 40)):
        rows = of.rows[domain]
        assert [len(rows[split]) for split in domains.SPLITS] == [0.7 * size, 0.1 * size, 0.2 * size]
        assert sorted(np.concatenate(list(rows.values()))) == list(range(size))
        assert [d.doc_id for d in of.documents("test", domain)] == [f"{domain}{i}" for i in rows["test"]]
    expected = [f"{d}/{d}{i}" for d in of.names for i in of.rows[d]["test"]]
    assert of.document_ids("test") == expected


def test_what_is_held_out_depends_on_the_ids_alone():
    other = domains.held_out({"a": collection("a", 20, text="quite another text, {}, and longer")}, dev=0.02)
    np.testing.assert_array_equal(other.rows["a"]["test"], make().rows["a"]["test"])
    assert make().corpus_hash == make().corpus_hash != make(test=0.1).corpus_hash


@pytest.mark.parametrize("length", [3, 7])
def test_no_document_is_in_two_splits_whatever_the_length(length):
    of, seen = make(dev=0.1, test=0.1), {}
    for split in domains.SPLITS:
        chunks = domains.chunks(of, split, Letters(), length)
        names = of.document_ids(split)
        for number, document in enumerate(chunks.table.document_of_chunk):
            assert seen.setdefault(names[document], split) == split
            assert names[document].startswith(of.names[chunks.domains[number]])
        assert chunks.sizes.tolist() == np.bincount(chunks.domains).tolist()
    assert len(seen) == 60


def test_a_batch_has_the_rows_of_its_part():
    chunks = domains.chunks(make(), "test", Letters(), 4)
    make_batch = domains.batches(chunks, 4)
    whole = make_batch(np.array([3, 0, 1]), 0)
    assert {name: x.shape for name, x in whole.items()} == {
        "tokens": (3, 4), "targets": (3, 4), "mask": (3, 4), "domains": (3,)
    }  # fmt: skip
    assert whole["domains"].tolist() == chunks.domains[[3, 0, 1]].tolist()
    for name, array in make_batch(np.array([3, 0, 1]), 0, slice(1, 3)).items():
        np.testing.assert_array_equal(array, whole[name][1:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dev": 0.0}, "dev is 0.0; allowed: above 0 and below 1"),
        ({"test": 1.0}, "test is 1.0; allowed"),
        ({"weights": {"a": 1.0}}, "weights has a; allowed: one for each of b, a, or none"),
        ({"weights": {"a": 1.0, "b": -1.0}}, "weights.b is -1.0; allowed: 0 or more"),
        ({"weights": {"a": 0, "b": 0}}, "weights are all 0"),
        ({"dev": 0.5, "test": 0.5}, "none is left for train"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_errors_of_collections():
    with pytest.raises(ValueError, match="collections is empty"):
        domains.held_out({})
    for name in ("", "all"):
        with pytest.raises(ValueError, match=f"collections has a domain '{name}'; allowed: a name other"):
            domains.held_out({name: collection("a", 9)})
    with pytest.raises(DataError, match="a has 2 documents; at least 3 are needed"):
        domains.held_out({"a": collection("a", 2)})
    with pytest.raises(SpecError, match=r"collections\.a is 5; allowed: a collection"):
        build({"name": "language_model.domains.held_out", "collections": {"a": 5}})
    empty = domains.held_out({"a": collection("a", 9, text="")})
    with pytest.raises(DataError, match="the documents of a in split train have no text"):
        domains.chunks(empty, "train", Letters(), 4)
