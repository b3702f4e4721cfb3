import os

import pytest

from corpora.sources import hashes
from corpora.tables import DataError


def test_the_digest_of_a_file_is_of_its_content(tmp_path):
    file = tmp_path / "a"
    file.write_text("one")
    before = hashes.file_digest(file)
    os.utime(file, (0, 0))
    assert hashes.file_digest(file) == before
    file.write_text("two")
    assert hashes.file_digest(file) != before


def test_a_large_file_is_told_by_size_time_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "_WHOLE_UP_TO", 10)
    monkeypatch.setattr(hashes, "_END", 4)
    file = tmp_path / "a"

    def digest(text, time=1):
        file.write_text(text)
        os.utime(file, (time, time))
        return hashes.file_digest(file)

    first = digest("a" * 20)
    assert digest("a" * 20) == first
    assert digest("a" * 20, time=2) != first
    assert digest("a" * 21) != first
    assert digest("b" + "a" * 19) != first
    assert digest("a" * 19 + "b") != first
    assert digest("a" * 10 + "b" + "a" * 9) == first  # what the time alone tells


def test_queries_are_split_by_their_hashes():
    names = [f"q{number}" for number in range(100)]
    split = hashes.split_off(names, {"dev": 0.1, "test": 0.05})
    assert sorted(split.values()) == ["dev"] * 10 + ["test"] * 5 + ["train"] * 85
    assert hashes.split_off([*reversed(names), *names], {"dev": 0.1, "test": 0.05}) == split
    assert hashes.split_off(names, {"dev": 0.1, "test": 0.05}, seed=1) != split
    assert set(hashes.split_off(names, {"dev": 0.0, "test": 0.0}).values()) == {"train"}
    assert sorted(hashes.split_off("abc", {"dev": 0.01, "test": 0.01}).values()) == ["dev", "test", "train"]


def test_wrong_fractions_are_refused():
    with pytest.raises(DataError, match=r"data.dev is 1.0; allowed: 0 to below 1"):
        hashes.split_off("abc", {"dev": 1.0})
    with pytest.raises(DataError, match=r"of 3 queries none is left for train; held out: dev 0.6, test 0.6"):
        hashes.split_off("abc", {"dev": 0.6, "test": 0.6})
