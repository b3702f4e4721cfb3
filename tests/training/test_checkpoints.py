import json

import jax.numpy as jnp
import numpy as np
import pytest

from training.checkpoints import CheckpointError, Checkpoints, read_best
from training.task import TrainState


def state(step, value):
    return TrainState(jnp.int32(step), {"w": jnp.full(3, value)}, {"seen": jnp.int32(step)}, (jnp.zeros(2),))


LIKE = state(0, 0.0)


def test_the_latest_are_kept_and_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest_step() is None
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoints.restore(LIKE)
    for step in (1, 2, 3):
        checkpoints.save(state(step, float(step)))
    checkpoints.close()
    again = Checkpoints(tmp_path)
    restored = again.restore(LIKE)
    np.testing.assert_array_equal(restored.params["w"], [3.0] * 3)
    assert (int(restored.step), again.latest_step()) == (3, 3)
    assert sorted(path.name for path in (tmp_path / "latest").iterdir() if path.name.isdigit()) == ["2", "3"]


def test_the_best_is_replaced_by_a_better_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_value() is None
    checkpoints.save_best(state(4, 4.0), 0.2)
    checkpoints.save_best(state(8, 8.0), 0.3)
    step, params, task_state = read_best(tmp_path, LIKE.params, LIKE.state)
    assert (step, checkpoints.best_value(), int(task_state["seen"])) == (8, 0.3, 8)
    np.testing.assert_array_equal(params["w"], [8.0] * 3)
    checkpoints.close()
    assert [path.name for path in (tmp_path / "best").iterdir() if path.name.isdigit()] == ["8"]


def test_killed_before_the_best_was_recorded_the_run_goes_on(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(state(8, 8.0), 0.3)
    checkpoints.close()
    (tmp_path / "best.json").unlink()  # as though killed between the weights and their record
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_value() is None
    checkpoints.save_best(state(8, 8.5), 0.4)  # the resumed run comes to the same step again
    step, params, _ = read_best(tmp_path, LIKE.params, LIKE.state)
    assert (step, json.loads((tmp_path / "best.json").read_text())["value"]) == (8, 0.4)
    np.testing.assert_array_equal(params["w"], [8.5] * 3)


def test_another_shape_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1, 1.0))
    checkpoints.close()
    other = TrainState(jnp.int32(0), {"w": jnp.zeros(4)}, {"seen": jnp.int32(0)}, (jnp.zeros(2),))
    with pytest.raises(CheckpointError, match="cannot be restored"):
        Checkpoints(tmp_path).restore(other)
