import functools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import tokenizer
from corpora.tables import DataError

TEXTS = ["def parseIsoDate(text): return parse_iso_date(text)", "read the HTTP server date"] * 20
TRAINERS = [tokenizer.train_bpe, tokenizer.train_wordpiece]


@functools.cache
def small():
    return tokenizer.train_wordpiece(TEXTS, vocab_size=120)


@pytest.mark.parametrize("train", TRAINERS)
def test_identifiers_are_split(train):
    made = train(TEXTS, vocab_size=200)
    assert made.tokens("parseIsoDate") == made.tokens("parse_iso_date") == ["parse", "iso", "date"]
    assert made.tokens("HTTPServer")[:2] == ["http", "server"]
    assert made.tokens("(date)") == ["(", "date", ")"]
    assert train(TEXTS, vocab_size=200, punctuation=False).tokens("(date) = read;http") == [
        "date",
        "read",
        "http",
    ]
    whole = train(TEXTS, vocab_size=200, split_identifiers=False)
    assert whole.tokens("parseIsoDate") == ["parseisodate"]


@pytest.mark.parametrize("train", TRAINERS)
def test_saved_and_loaded_it_is_the_same(train, tmp_path):
    made = train(TEXTS, vocab_size=120)
    made.save(tmp_path / "tokenizer.json")
    again = tokenizer.load(str(tmp_path / "tokenizer.json"))
    texts = ["parse the ISODate2 of x_y", "", "naïve 漢字"]
    assert again.encode(texts, 50) == made.encode(texts, 50)
    assert (again.vocab_size, again.pad_id, again.cls_id, again.sep_id) == (made.vocab_size, 0, 2, 3)


@given(text=st.text(max_size=200), length=st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_ids_are_cut_and_in_range(text, length):
    made = small()
    (ids,) = made.encode([text], length)
    assert len(ids) <= length
    assert ids == made.encode([text], 10_000)[0][:length]
    assert all(0 <= i < made.vocab_size for i in ids)


@pytest.mark.parametrize("train", TRAINERS)
@pytest.mark.parametrize("size", [8, 20, 60, 300])
def test_the_vocabulary_is_never_larger_than_asked_for(train, size):
    texts = ["".join(chr(0x4E00 + i) for i in range(100)), "the quick brown fox jumps over the lazy dog"] * 3
    assert train(texts, vocab_size=size).vocab_size <= size
    with pytest.raises(ValueError, match="vocab_size is 7; it must be at least 8"):
        train(texts, vocab_size=7)


@pytest.mark.parametrize("train", TRAINERS)
def test_the_same_texts_always_give_the_same_tokenizer(train, tmp_path):
    texts = [line for path in sorted(Path(json.__path__[0]).glob("*.py")) for line in path.open()]
    saved = []
    for number in range(3):
        train(texts, vocab_size=400).save(tmp_path / f"{number}.json")
        saved.append((tmp_path / f"{number}.json").read_text())
    assert saved[0] == saved[1] == saved[2]
    made = tokenizer.load(str(tmp_path / "0.json"))
    assert made.tokens("##s [PAD]") == ["#", "#", "s", "[PAD]"]  # no entry of the alphabet is special


def test_bert_vocabulary(collections):
    bert = tokenizer.load(str(collections / "bert_vocab" / "vocab.txt"))
    assert bert.vocab_size == 30_522
    assert bert.encode(["Hello, world! unaffable"], 10) == [[7592, 1010, 2088, 999, 14477, 20961, 3468]]
    assert bert.tokens("Déjà vu") == ["de", "##ja", "vu"]


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no such file: '/nowhere/tokenizer.json'"):
        tokenizer.load("/nowhere/tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"is not a tokenizer.json"):
        tokenizer.load(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"has no line \[UNK\]"):
        tokenizer.load(str(tmp_path / "vocab.txt"))
    (tmp_path / "vocab.txt").write_text("[UNK]\nb\n")
    with pytest.raises(DataError, match=r"no token \[PAD\], \[CLS\], \[SEP\]"):
        tokenizer.load(str(tmp_path / "vocab.txt"))
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        tokenizer.load(str(tmp_path / "vocab.txt"))
