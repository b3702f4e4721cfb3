"""Ids are unique, none begins another, and what is saved comes back."""

import numpy as np
import pytest

from generative_retrieval.docids import Docids, DocidsError, sorted_rows


def ids(*rows):
    width = max(map(len, rows))
    return np.array([[*row, *[-1] * (width - len(row))] for row in rows], np.int32)


def test_lengths_and_sizes():
    held = Docids(ids([1, 2, 0], [1, 0], [3, 0]), 4, "by hand")
    assert len(held) == 3
    assert held.lengths.tolist() == [3, 2, 2]


@pytest.mark.parametrize(
    ("symbols_NT", "message"),
    [
        (ids([1, 2], [3], [3, 1]), r"document 2 has the id \[3, 1\], and document 1 the same or a beginning"),
        (ids([1, 2], [3, 1], [1, 2]), r"document 2 has the id \[1, 2\], and document 0 the same"),
        (ids([1, 4]), r"symbols are 1 to 4; allowed: -1 \(none\) to 3"),
        (ids([1, -1, 2]), r"document 0 has the id \[1, -1, 2\], which has a gap"),
        (ids([1], [-1]), r"document 1 has the id \[-1\], which has a gap"),
        (np.zeros((0, 2), np.int32), r"int32 \[N, T\], of a document at least"),
        (np.zeros((2, 2)), r"symbols are float64 \[2, 2\]"),
    ],
)
def test_what_are_no_ids_is_named(symbols_NT, message):
    with pytest.raises(DocidsError, match=message):
        Docids(symbols_NT, 4, "by hand")


def test_what_is_saved_comes_back(tmp_path):
    held = Docids(ids([1, 2, 0], [300, 0]), 301, "by hand", 0.25, {"centroids": np.eye(2, dtype=np.float32)})
    held.save(tmp_path / "docids.npz")
    read = Docids.load(tmp_path / "docids.npz")
    assert read.symbols_NT.dtype == np.int32
    assert (read.symbols_NT == held.symbols_NT).all()
    assert (read.size, read.scheme, read.collisions) == (301, "by hand", 0.25)
    assert (read.state["centroids"] == np.eye(2)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["docids.npz"]


def test_a_file_without_ids_is_named(tmp_path):
    with pytest.raises(DocidsError, match=r"no docids at .*missing\.npz"):
        Docids.load(tmp_path / "missing.npz")
    Docids(ids([1], [2]), 3, "by hand").save(tmp_path / "cut.npz")
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DocidsError, match=r"cut\.npz holds no docids"):
        Docids.load(tmp_path / "cut.npz")


def test_sorting_compares_symbol_by_symbol():
    rng = np.random.default_rng(0)
    for size in (3, 1_000, 5_000_000):  # several columns in one number, and one in one
        symbols_NT = rng.integers(-1, size, (50, 5)).astype(np.int32)
        expected = sorted(range(50), key=lambda row, of=symbols_NT: tuple(of[row]))
        assert sorted_rows(symbols_NT).tolist() == expected
