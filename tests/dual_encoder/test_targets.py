"""Vectors that queries are to be like: whose texts are encoded, and files of expansions that are wrong."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from corpora.tables import DataError
from dual_encoder import targets

DATASET = SimpleNamespace(name="toy", queries={"a": "red cat", "b": "dog"})


@pytest.fixture(autouse=True)
def _teacher(monkeypatch):
    """A teacher whose vector of a text is the number of its letters and words."""
    encode = lambda texts: (np.array([[len(t), len(t.split())] for t in texts], np.float32), None)
    monkeypatch.setattr(targets, "opener", lambda run, batch_size: lambda: SimpleNamespace(queries=encode))


def test_the_same_queries():
    found = targets.queries("run")(DATASET, ["b", "a"])
    np.testing.assert_array_equal(found, [[3, 1], [7, 2]])


def test_each_query_is_followed_by_its_expansion(tmp_path, capsys):
    file = tmp_path / "expansions.jsonl"
    file.write_text(json.dumps({"query_id": "a", "text": "a pet"}) + "\n")
    found = targets.expanded("run", str(file))(DATASET, ["b", "a"])
    np.testing.assert_array_equal(found, [[3, 1], [len("red cat a pet"), 4]])
    assert "expansions of 1 of 2 training queries" in capsys.readouterr().out
    with pytest.raises(DataError, match="has no expansion of a training query of toy"):
        targets.expanded("run", str(file))(DATASET, ["b"])


@pytest.mark.parametrize("line", ["nope", "[1]", '{"query_id": "a"}', '{"query_id": 1, "text": "x"}'])
def test_a_malformed_line_is_named(tmp_path, line):
    file = tmp_path / "expansions.jsonl"
    file.write_text('{"query_id": "a", "text": "x"}\n' + line)
    with pytest.raises(DataError, match="line 2: expected JSON with the strings query_id and text"):
        targets.expanded("run", str(file))


@pytest.mark.parametrize(("file", "message"), [("", "expansions is ''"), ("/nowhere/x", "No such file")])
def test_a_file_must_be_there(file, message):
    with pytest.raises(DataError, match=message):
        targets.expanded("run", file)
