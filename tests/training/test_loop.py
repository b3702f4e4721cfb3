import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training import loop, metrics
from training.checkpoints import Checkpoints, read_best
from training.interrupts import Interrupted
from training.mesh import data_mesh


@dataclasses.dataclass(frozen=True)
class Regression:
    """y = x w, with noise on x that depends on the step's key; counts its batches in its state."""

    noise: float = 0.0

    def init(self, rng, batch):
        return {"w": jax.random.normal(rng, (batch["x"].shape[1],))}, {"seen": jnp.zeros((), jnp.int32)}

    def loss(self, params, state, batch, rng, *, train):
        x = batch["x"] + self.noise * jax.random.normal(rng, batch["x"].shape)
        error = jnp.mean(jnp.square(x @ params["w"] - batch["y"]))
        return error, ({"seen": state["seen"] + 1}, {"error": error})


def batches(first, poison=None):
    """An endless stream whose batch is a function of its step; NaN at step `poison`."""
    step = first
    while True:
        rng = np.random.default_rng(step)
        x = rng.normal(size=(16, 3)).astype(np.float32)
        y = x @ np.array([1.0, -2.0, 0.5], np.float32)
        yield {"x": x, "y": y if step != poison else y * np.nan}
        step += 1


def run(tmp_path, total=20, poison=None, **kwargs):
    schedule = loop.Schedule(
        total,
        log_every=5,
        eval_every=10,
        save_every=kwargs.pop("save_every", 10),
        **kwargs.pop("schedule", {}),
    )
    return loop.train(
        Regression(noise=0.1),
        optax.adam(0.1),
        lambda first: batches(first, poison),
        schedule,
        tmp_path,
        seed=3,
        **kwargs,
    )


def test_learns_and_logs(tmp_path):
    state = run(tmp_path, total=200)
    np.testing.assert_allclose(state.params["w"], [1.0, -2.0, 0.5], atol=0.1)
    assert int(state.step) == int(state.state["seen"]) == 200
    rows = metrics.read(tmp_path)
    assert [row["step"] for row in rows] == list(range(5, 201, 5))
    assert rows[-1]["loss"] < rows[0]["loss"] / 10
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["error"])
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = run(tmp_path / "whole", total=20)
    run(tmp_path / "cut", total=10)
    resumed = run(tmp_path / "cut", total=20)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    timeless = [
        [
            {k: v for k, v in row.items() if k != "wall_time" and "per_second" not in k}
            for row in metrics.read(tmp_path / name)
        ]
        for name in ("whole", "cut")
    ]
    assert timeless[0] == timeless[1]


def test_data_parallel_equals_one_device(tmp_path):
    assert len(jax.devices()) == 8
    one = run(tmp_path / "one", mesh=data_mesh(jax.devices()[:1]))
    eight = run(tmp_path / "eight", mesh=data_mesh())
    one_w, eight_w = jax.device_get((one.params["w"], eight.params["w"]))
    assert np.max(np.abs(one_w - eight_w)) <= 1e-5 * np.max(np.abs(eight_w))


def test_a_batch_that_the_devices_do_not_divide_is_refused(tmp_path):
    with pytest.raises(ValueError, match="16 rows, which 3 devices"):
        run(tmp_path, mesh=data_mesh(jax.devices()[:3]))


def test_not_a_number_stops_the_run_and_names_step_and_batch(tmp_path):
    with pytest.raises(loop.NonFiniteLoss, match=r"step 13 \(batch of step 12\).*checkpoint is step 10"):
        run(tmp_path, poison=12, describe_batch=lambda step: f"batch of step {step}")
    assert Checkpoints(tmp_path / "checkpoints").latest_step() == 10


def test_a_signal_saves_and_the_run_resumes(tmp_path):
    def interrupted(first):
        for number, batch in enumerate(batches(first), first + 1):
            if number == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    schedule = loop.Schedule(20, log_every=5, eval_every=10, save_every=10)
    with pytest.raises(Interrupted) as stop:
        loop.train(Regression(noise=0.1), optax.adam(0.1), interrupted, schedule, tmp_path, seed=3)
    assert stop.value.signum == signal.SIGTERM
    assert 0 < stop.value.step < 20
    assert Checkpoints(tmp_path / "checkpoints").latest_step() == stop.value.step
    resumed = run(tmp_path)
    whole = run(tmp_path / "whole")
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])


def test_the_best_evaluation_is_kept(tmp_path):
    values = iter([1.0, 0.3, 0.9, 0.5])  # the first before any step, where nothing is kept
    seen = []

    def evaluator(state):
        seen.append(np.array(state.params["w"]))
        yield "dev/measure", next(values)

    run(tmp_path, total=30, evaluators=[evaluator], schedule={"best_measure": "dev/measure"})
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    step, params, state = read_best(
        tmp_path / "checkpoints", {"w": jnp.zeros(3)}, {"seen": jnp.zeros((), jnp.int32)}
    )
    assert (step, checkpoints.best_value(), int(state["seen"])) == (20, 0.9, 20)
    np.testing.assert_array_equal(params["w"], seen[2])
    assert [row["dev/measure"] for row in metrics.read(tmp_path) if "dev/measure" in row] == [
        1.0,
        0.3,
        0.9,
        0.5,
    ]


def test_a_best_measure_that_no_evaluator_gives_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="best_measure is 'dev/x'; the evaluators gave nothing"):
        run(tmp_path, schedule={"best_measure": "dev/x"})


def test_a_schedule_of_zero_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="total_steps is 0"):
        run(tmp_path, total=0)


def test_metrics_are_json_without_nan(tmp_path):
    writer = metrics.MetricWriter(tmp_path)
    writer.write(1, {"loss": float("nan")})
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] is None


@pytest.mark.parametrize("at", [5, 20])
def test_a_signal_during_an_evaluation_is_saved_too(tmp_path, at):
    def evaluator(state):
        if int(state.step) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        yield "dev/measure", 0.5

    schedule = loop.Schedule(20, log_every=5, eval_every=5, save_every=10)
    with pytest.raises(Interrupted) as stop:
        loop.train(Regression(), optax.adam(0.1), batches, schedule, tmp_path, evaluators=[evaluator])
    assert stop.value.step == at
    assert Checkpoints(tmp_path / "checkpoints").latest_step() == at


def test_an_update_that_is_not_finite_is_never_saved(tmp_path):
    optimizer = optax.sgd(lambda step: jnp.where(step == 9, jnp.inf, 0.01))
    schedule = loop.Schedule(20, log_every=5, eval_every=10, save_every=5)
    with pytest.raises(loop.NonFiniteLoss, match=r"step 10 .* checkpoint is step 5"):
        loop.train(Regression(), optimizer, batches, schedule, tmp_path)


def test_a_measure_that_is_no_number_is_never_the_best(tmp_path):
    run(
        tmp_path,
        evaluators=[lambda state: [("dev/measure", float("nan"))]],
        schedule={"best_measure": "dev/measure"},
    )
    assert Checkpoints(tmp_path / "checkpoints").best_value() is None
