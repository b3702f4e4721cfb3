import pytest

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
