"""Stored vectors: whatever is killed or damaged, a store reads back as written or names what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.tables import DataError
from dual_encoder import vectors
from dual_encoder.vectors import VectorStore

ABOUT = {"step": 7, "parameters": "0123456789abcdef" * 4, "text": {"query_length": 8}}
IDS = [f"d{i}" for i in range(10)]


def encode(start, stop, report):
    """Text n has the vector [n, n + 0.5]."""
    report(stop - start)
    n = np.arange(start, stop, dtype=np.float32)
    return np.stack([n, n + 0.5], axis=1), np.arange(stop - start)


def write(folder, encode=encode, about=ABOUT, ids=IDS, **settings):
    settings = {"shard_size": 4, **settings}
    return vectors.write(folder, about, ids, 2, encode, title="encoding", **settings)


def recording(calls):
    def recorded(start, stop, report):
        calls.append((start, stop))
        return encode(start, stop, report)

    return recorded


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_an_empty_text_does_not_hide_that_vectors_have_length_1():
    unit, empty = [0.6, 0.8], [0.0, 0.0]
    assert vectors.are_unit(np.array([unit, [1.0, 0.0]]))
    assert vectors.are_unit(np.array([unit, empty]))
    assert not vectors.are_unit(np.array([empty]))
    assert not vectors.are_unit(np.array([unit, empty, [1.0, 1.0]]))


def test_by_hand(tmp_path):
    assert write(tmp_path) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "ids.json", "manifest.json",
        "shard-00000.json", "shard-00000.npy", "shard-00001.json", "shard-00001.npy",
        "shard-00002.json", "shard-00002.npy",
    ]  # fmt: skip
    store = VectorStore.open(tmp_path)
    assert store.manifest | ABOUT == store.manifest
    assert [store.manifest[name] for name in ("texts", "width", "shard_size")] == [10, 2, 4]
    assert (len(store), store.ids) == (10, IDS)
    assert [len(shard) for shard in store.shards()] == [4, 4, 2]
    assert all(isinstance(shard, np.memmap) for shard in store.shards())
    expected = np.stack([np.arange(10), np.arange(10) + 0.5], axis=1).astype(np.float32)
    np.testing.assert_array_equal(store.vectors(), expected)
    np.testing.assert_array_equal(store.read([9, 0, 4, 4]), expected[[9, 0, 4, 4]])
    assert store.read([]).shape == (0, 2)
    with pytest.raises(IndexError, match="row is 10; allowed: 0 to 9"):
        store.read([0, 10])


def test_texts_of_several_rows(tmp_path):
    def passages(start, stop, report):
        """Text n has n % 3 + 1 rows."""
        text_of_row = np.repeat(np.arange(stop - start), [n % 3 + 1 for n in range(start, stop)])
        rows = (text_of_row + start).astype(np.float32)
        return np.stack([rows, rows], axis=1), text_of_row

    write(tmp_path, passages)
    store = VectorStore.open(tmp_path)
    assert store.text_of_row.tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5, 6, 7, 7, 8, 8, 8, 9]
    assert store.vectors()[:, 0].tolist() == store.text_of_row.tolist()
    assert store.read([18, 7])[:, 1].tolist() == [9.0, 4.0]


def test_goes_on_where_it_stopped(tmp_path):
    calls, folder = [], tmp_path / "stopped"

    def stopping(start, stop, report):
        if start == 4:
            raise KeyboardInterrupt
        return recording(calls)(start, stop, report)

    with pytest.raises(KeyboardInterrupt):
        write(folder, stopping)
    assert calls == [(0, 4)]
    with pytest.raises(DataError, match=r"not complete: 2 of 3 shards .* first shard-00001.npy"):
        VectorStore.open(folder)
    assert write(folder, recording(calls), shard_size=None) == 0  # the shards keep their size
    assert calls == [(0, 4), (4, 8), (8, 10)]
    assert write(folder, recording(calls)) == 0
    assert len(calls) == 3
    write(tmp_path / "at once")
    assert files(folder) == files(tmp_path / "at once")


@settings(max_examples=30, deadline=None)
@given(texts=st.integers(1, 30), shard_size=st.integers(1, 12), processes=st.integers(1, 5), data=st.data())
def test_processes_share_the_work_in_any_order(tmp_path_factory, texts, shard_size, processes, data):
    folder = tmp_path_factory.mktemp("store")
    ids, calls = [str(i) for i in range(texts)], []
    missing = None
    for process in data.draw(st.permutations(range(processes))):
        missing = write(
            folder, recording(calls), ids=ids, shard_size=shard_size, process=process, processes=processes
        )
    assert missing == 0
    assert sorted(calls) == [(i, min(i + shard_size, texts)) for i in range(0, texts, shard_size)]
    assert VectorStore.open(folder).vectors()[:, 0].tolist() == list(range(texts))


def test_a_process_that_is_done_first_says_what_is_missing(tmp_path):
    assert write(tmp_path, process=1, processes=2) == 2
    assert write(tmp_path, process=0, processes=2) == 0


KILLED = """
import sys, time
import numpy as np
from dual_encoder import vectors

def encode(start, stop, report):
    time.sleep(0.02)
    n = np.arange(start, stop, dtype=np.float32)
    return np.stack([n] * 50_000, axis=1), np.arange(stop - start)

vectors.write(sys.argv[1], {}, [str(i) for i in range(400)], 50_000, encode, title="x", shard_size=10)
"""


def test_a_kill_at_any_moment_loses_only_the_shard_under_way(tmp_path):
    folder = tmp_path / "store"
    kept = 0
    for tenth in (1, 3, 6):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(list(folder.glob("shard-*.json"))) < kept + tenth and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(tenth * 0.003)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        before, kept = kept, len(list(folder.glob("shard-*.json")))
        assert before + tenth <= kept < 40
    calls = []

    def encode(start, stop, report):
        calls.append(start)
        n = np.arange(start, stop, dtype=np.float32)
        return np.stack([n] * 50_000, axis=1), np.arange(stop - start)

    ids = [str(i) for i in range(400)]
    assert vectors.write(folder, {}, ids, 50_000, encode, title="x", shard_size=10) == 0
    assert len(calls) == 40 - kept
    assert VectorStore.open(folder).vectors()[:, 7].tolist() == list(range(400))
    assert not list(folder.glob(".*"))  # nor is anything half-written left


def truncate(folder):
    file = folder / "shard-00001.npy"
    file.write_bytes(file.read_bytes()[:-5])


def flip(folder):
    file = folder / "shard-00001.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def remove(folder):
    (folder / "shard-00001.npy").unlink()


@pytest.mark.parametrize("harm", [truncate, flip, remove])
def test_a_damaged_shard_is_named_and_made_anew(tmp_path, harm, capsys):
    write(tmp_path)
    whole = files(tmp_path)
    harm(tmp_path)
    with pytest.raises(DataError, match=r"shard-00001.npy is missing or damaged"):
        VectorStore.open(tmp_path)
    calls = []
    write(tmp_path, recording(calls))
    assert calls == [(4, 8)]
    assert "shard-00001.npy is damaged and made anew" in capsys.readouterr().err
    assert files(tmp_path) == whole


def test_other_damage_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no vectors in .*: there is no manifest.json"):
        VectorStore.open(tmp_path)
    write(tmp_path)
    (tmp_path / "ids.json").write_text('["d0"]')
    with pytest.raises(DataError, match=r"ids.json is missing or damaged"):
        VectorStore.open(tmp_path)
    write(tmp_path)
    assert VectorStore.open(tmp_path).ids == IDS
    (tmp_path / "manifest.json").write_text('{"texts": 3')
    for look in (VectorStore.open, write):
        with pytest.raises(DataError, match=r"manifest.json is damaged"):
            look(tmp_path)


def test_vectors_of_something_else_are_refused_and_both_named(tmp_path):
    write(tmp_path)
    other = {**ABOUT, "step": 9, "parameters": "fedcba9876543210" * 4, "text": {"query_length": 9}}
    message = (
        rf"{tmp_path} holds vectors of something else \(step is 7 there and 9 here, parameters is "
        r"0123456789ab there and fedcba987654 here, text.query_length is 8 there and 9 here\)"
    )
    with pytest.raises(DataError, match=message):
        write(tmp_path, about=other)
    with pytest.raises(DataError, match=r"shard_size is 4 there and 5 here"):
        write(tmp_path, shard_size=5)
    with pytest.raises(DataError, match=r"texts is 10 there and 9 here"):
        write(tmp_path, ids=IDS[:9])
    assert vectors.differences(tmp_path, {"step": 7}) == []
    assert vectors.differences(tmp_path, {"step": 8}) == ["step is 7 there and 8 here"]
    assert vectors.differences(tmp_path / "none", {"step": 8}) == []


def test_shards_left_of_another_store_are_not_taken_for_this_one(tmp_path):
    write(tmp_path, about={"step": 1})
    (tmp_path / "manifest.json").unlink()
    calls = []
    write(tmp_path, recording(calls), about={"step": 2}, process=0, processes=3)
    assert calls == [(0, 4)]
    with pytest.raises(DataError, match=r"2 of 3 shards are not written yet"):
        VectorStore.open(tmp_path)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ((np.zeros((4, 3), np.float32), np.arange(4)), r"float32 \(4, 3\); expected float32 \(4, 2\)"),
        ((np.zeros((4, 2)), np.arange(4)), "vectors are float64"),
        ((np.zeros((4, 2), np.float32), np.array([0, 2, 1, 3])), "texts 0 to 3, ascending, each there"),
        ((np.zeros((4, 2), np.float32), np.array([0, 1, 1, 3])), "texts 0 to 3, ascending, each there"),
        ((np.zeros((4, 2), np.float32), np.array([0, 1, 2, 4])), "texts 0 to 3, ascending, each there"),
        ((np.array([[0, 0], [1, np.nan], [0, 0], [0, 0]], np.float32), np.arange(4)), "text 1 has NaN"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, found, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, lambda start, stop, report: found)
    assert json.loads((tmp_path / "manifest.json").read_text())["texts"] == 10
    assert not list(tmp_path.glob("shard-*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ids": []}, "ids is empty"),
        ({"shard_size": 0}, "shard_size is 0; it must be at least 1"),
        ({"process": 2, "processes": 2}, "process is 2; allowed: 0 to 1"),
    ],
)
def test_numbers_out_of_range(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **settings)


def test_progress_counts_what_was_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.progress._SECONDS_BETWEEN_LINES", 0)
    write(tmp_path)
    (tmp_path / "shard-00001.json").unlink()
    capsys.readouterr()
    write(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"encoding: 6 of 10 texts are there from before, in {tmp_path}"
    assert lines[1].startswith("encoding: 10 of 10 texts (100%), ")
