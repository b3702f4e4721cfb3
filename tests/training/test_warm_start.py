import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.checkpoints import Checkpoints
from training.task import TrainState
from training.warm_start import load, merge

SOURCE = {"old": {"kernel": np.full((2, 2), 3.0), "bias": np.full(2, 4.0)}, "head": np.full(3, 5.0)}
FRESH = {"new": {"kernel": jnp.zeros((2, 2)), "bias": jnp.ones(2)}, "head": jnp.zeros(4)}


def test_paths_are_rewritten_and_everything_is_accounted_for():
    merged, report = merge(FRESH, SOURCE, rules=[("bias$", None), ("^old/", "new/")])
    np.testing.assert_array_equal(merged["new"]["kernel"], np.full((2, 2), 3.0))
    np.testing.assert_array_equal(merged["new"]["bias"], np.ones(2))
    assert report.loaded == ("new/kernel",)
    assert report.skipped == {
        "old/bias": "a rule leaves it out",
        "head": "its shape is (3,), that of head (4,)",
    }
    assert report.new == ("head", "new/bias")
    assert report.lines() == [
        "loaded 1 parameters, skipped 2, 2 are new",
        "  skipped head: its shape is (3,), that of head (4,)",
        "  skipped old/bias: a rule leaves it out",
        "  new head",
        "  new new/bias",
    ]


def test_mistakes_in_rules_are_refused():
    with pytest.raises(ValueError, match="'odl' is for no parameter; there are head, old/bias, old/kernel"):
        merge(FRESH, SOURCE, rules=[("odl", "new")])
    with pytest.raises(ValueError, match="old/bias and old/kernel both become new/kernel"):
        merge(
            {"new": {"kernel": jnp.zeros(2)}},
            {"old": {"bias": np.zeros(2), "kernel": np.zeros(2)}},
            rules=[("^old/.*", "new/kernel")],
        )
    with pytest.raises(ValueError, match="no parameter could be loaded"):
        merge(FRESH, {"else": np.zeros(1)})


def test_another_runs_best_checkpoint_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    params = jax.tree.map(jnp.asarray, SOURCE)
    checkpoints.save_best(
        TrainState(
            jnp.int32(4),
            params,
            {"balance": {"bias": jnp.full(2, 7.0)}},
            (),
            jax.tree.map(lambda x: x + 1, params),
        ),
        0.5,
    )
    checkpoints.close()
    state = {"balance": {"bias": np.zeros(2), "other": np.zeros(2)}}
    merged, state, report = load(FRESH, state, tmp_path, rules=[("^old/", "new/")])
    assert report.loaded == ("balance/bias", "new/bias", "new/kernel")
    assert "balance/other" in report.new
    assert state["balance"]["bias"].tolist() == [7.0, 7.0]  # the state is none that a gradient trains
    np.testing.assert_array_equal(merged["new"]["kernel"], np.full((2, 2), 4.0))  # its moving average


def test_a_parameter_may_become_several():
    fresh = {"query": {"table": jnp.zeros(2)}, "document": {"table": jnp.zeros(2), "weight": jnp.zeros(2)}}
    source = {"tower": {"table": np.full(2, 3.0)}}
    merged, report = merge(fresh, source, rules=[("^tower/", ("query/", "document/"))])
    for side in ("query", "document"):
        np.testing.assert_array_equal(merged[side]["table"], np.full(2, 3.0))
    assert report.loaded == ("query/table", "document/table")
    assert report.new == ("document/weight",)
