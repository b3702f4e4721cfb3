import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import plots


def test_draws_a_picture(tmp_path):
    rows = [{"step": 5, "loss": 3.0}, {"step": 10, "loss": 1.0}, {"step": 10, "dev/mrr@10": 0.4}]
    plots.quality_over_training(tmp_path / "a.png", rows, "dev/mrr@10", {"bm25": 0.3}, title="a title")
    plots.quality_over_training(tmp_path / "b.png", rows, "dev/mrr@10", {"bm25": 0.1}, title="a title")
    pictures = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png")]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[0] != pictures[1]  # the level is in it


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no row has 'dev/ndcg@10'"):
        plots.quality_over_training(
            tmp_path / "a.png", [{"step": 1, "loss": 1.0}], "dev/ndcg@10", {}, title=""
        )


def points(*pairs, **fields):
    return [plots.Point(x, y, **fields) for x, y in pairs]


def test_lines_show_their_bands(tmp_path):
    series = {"a": points((1, 0.3), (64, 0.5)), "b": points((1, 0.2), (64, 0.4))}
    banded = {"a": points((1, 0.3), (64, 0.5), low=0.1, high=0.6), "b": series["b"]}
    words = {"a": points(("x", 0.3), ("y", 0.5))}
    for name, of in (("a", series), ("b", banded), ("c", words)):
        plots.lines(tmp_path / f"{name}.png", of, x="x", y="y", title="a title")
    pictures = {(tmp_path / f"{name}.png").read_bytes() for name in "abc"}
    assert len(pictures) == 3
    with pytest.raises(ValueError, match="series have no points"):
        plots.lines(tmp_path / "d.png", {"a": []}, x="x", y="y", title="")


def test_the_front_is_in_the_picture(tmp_path):
    alone, beaten = points((2, 0.3)), points((1, 0.3), (2, 0.2), low=0.1, high=0.4)
    for name, of in (("a", alone), ("b", beaten)):
        plots.pareto(tmp_path / f"{name}.pdf", {"of": of}, x="x", y="y", title="a title")
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match="series have no points"):
        plots.pareto(tmp_path / "d.png", {}, x="x", y="y", title="")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(pairs):
    kept = plots.front(pairs)
    assert [pairs[i] for i in kept] == sorted({
        (x, y) for x, y in pairs
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in pairs)
    })  # fmt: skip
    assert all(pairs.index(pairs[i]) == i for i in kept)  # of equals the first


def test_examples_in_docstrings():
    found = doctest.testmod(plots)
    assert found.attempted > 0
    assert found.failed == 0


def test_heatmaps_have_one_scale_and_name_their_rows(tmp_path):
    panels = {"layer 0": np.array([[0.0, 0.5], [1.0, np.nan]]), "layer 1": np.array([[0.1, 0.2], [0.3, 0.4]])}
    said = dict(x="expert", y="domain", value="share", title="a title")
    louder = {**panels, "layer 1": 2 * panels["layer 1"]}
    for name, of, rows, middle in (
        ("a", panels, "pq", None),
        ("b", louder, "pq", None),
        ("c", panels, "xq", None),
        ("d", panels, "pq", 0.5),
    ):
        plots.heatmaps(tmp_path / f"{name}.png", of, list(rows), middle=middle, **said)
    pictures = {(tmp_path / f"{name}.png").read_bytes() for name in "abcd"}
    assert len(pictures) == 4
    with pytest.raises(ValueError, match=r"layer 0 has the shape \(2, 2\); allowed: 3 rows"):
        plots.heatmaps(tmp_path / "e.png", panels, list("pqr"), **said)
    with pytest.raises(ValueError, match="panels is empty"):
        plots.heatmaps(tmp_path / "e.png", {}, [], **said)
