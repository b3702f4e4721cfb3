"""The table of docid schemes, on a collection that is written by hand."""

import json
import sys

import numpy as np
import pytest

from corpora import beir
from corpora.tables import Document, Judgement, Query, Tables
from experiments import docids as program
from experiments.cli import UsageError
from generative_retrieval.docids import Docids
from generative_retrieval.schemes.atomic import Atomic
from generative_retrieval.schemes.quantized import Product
from generative_retrieval.schemes.text import Titles

TITLES = ("a red fox", "a red fox", "the blue whale", "the blue")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A collection of four documents, two of one title, and three schemes for them."""
    monkeypatch.setenv("RETRIEVAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(program, "SCHEMES", (Atomic(), Titles(length=12), Product(parts=1, k=30)))
    documents = [
        Document(f"d{row}", title, f"{title} lives here {word} {word}")
        for row, (title, word) in enumerate(zip(TITLES, ("one", "two", "three", "four"), strict=True))
    ]
    qrels = {split: [Judgement("q", "d0", 1)] for split in ("train", "dev", "test")}
    beir.write(tmp_path / "data", Tables(documents, [Query("q", "fox")], qrels))
    return dict(
        seed=0,
        data=dict(
            name="corpora.sources.beir_folder.load", folder=str(tmp_path / "data"), allow_missing=False
        ),
        tokenizer=dict(name="corpora.tokenizer.train_wordpiece", vocab_size=200, min_frequency=1),
    )


def test_rows_by_hand(config):
    atomic, titles, product = program.of_collection(config)
    assert atomic["settings"] == "Atomic(capacity=0)"
    assert (atomic["documents"], atomic["mean_length"], atomic["symbols"]) == (4, 1, 5)
    assert (atomic["trie_nodes"], atomic["collisions"]) == (5, 0)
    # Every word is one token: "a red fox" and numbers 1 and 2, "the blue whale" and 1, "the blue" and 1.
    assert (titles["mean_length"], titles["longest"], titles["collisions"]) == (3.75, 4, 0.5)
    assert titles["trie_nodes"] == 1 + (3 + 2) + (3 + 1) + 1
    # Three numbers of TF-IDF and 30 centroids for four documents.
    assert product == {
        "settings": "Product(parts=1, k=30)", "refused": "k is 30; allowed: 1 to 4",
    }  # fmt: skip
    text = program.lines([atomic, titles, product])
    assert "| Titles(length=12, numbers=100) | 3.75 |       4 |" in text[3]
    assert text[-1] == "no ids by Product(parts=1, k=30): k is 30; allowed: 1 to 4"


def test_the_configs_own_scheme_comes_first(config):
    scheme = dict(name="generative_retrieval.schemes.naive.Naive", base=2)
    naive, *_ = program.of_collection(config | dict(docids=dict(scheme=scheme)))
    assert (naive["settings"], naive["symbols"], naive["longest"]) == ("Naive(base=2)", 3, 3)


def test_a_config_without_a_collection_is_refused(config):
    with pytest.raises(UsageError, match="the config has no data; allowed: seed, data, tokenizer"):
        program.of_collection({name: config[name] for name in ("seed", "tokenizer")})
    with pytest.raises(UsageError, match=r"config.data is no collection"):
        program.of_collection(config | dict(data=dict(a=1)))


def test_a_runs_docids(tmp_path, monkeypatch, capsys):
    Docids(np.array([[1, 2], [1, 3]], np.int32), 4, "any", 0.25).save(tmp_path / "docids.npz")
    monkeypatch.setattr(sys, "argv", ["docids", f"--workdir={tmp_path}", "--json"])
    program.main()
    (of,) = json.loads(capsys.readouterr().out)
    assert (of["scheme"], of["mean_length"], of["trie_nodes"], of["collisions"]) == ("any", 2, 4, 0.25)
    monkeypatch.setattr(sys, "argv", ["docids", f"--workdir={tmp_path / 'none'}"])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert "error: no docids at" in capsys.readouterr().err
