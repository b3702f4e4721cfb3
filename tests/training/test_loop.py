import dataclasses
import itertools
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training import checkpoints as checkpoints_module
from training import loop, metrics
from training.checkpoints import CheckpointError, Checkpoints, read_best
from training.interrupts import Interrupted
from training.lock import LockedError, exclusive
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


def batches(first, tables=None, poison=None):
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
        lambda first, tables: batches(first, tables, poison),
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
        [metrics.without_time(row) for row in metrics.read(tmp_path / name)] for name in ("whole", "cut")
    ]
    assert timeless[0] == timeless[1]


def test_data_parallel_equals_one_device(tmp_path):
    assert len(jax.devices()) == 8
    one = run(tmp_path / "one", mesh=data_mesh(jax.devices()[:1]))
    eight = run(tmp_path / "eight", mesh=data_mesh())
    one_w, eight_w = jax.device_get((one.params["w"], eight.params["w"]))
    assert np.max(np.abs(one_w - eight_w)) <= 1e-5 * np.max(np.abs(eight_w))


def test_a_batch_that_the_devices_do_not_divide_is_refused(tmp_path):
    with pytest.raises(ValueError, match="16 rows, which 3 parts of a batch"):
        run(tmp_path, mesh=data_mesh(jax.devices()[:3]))


def test_not_a_number_stops_the_run_and_names_step_and_batch(tmp_path):
    with pytest.raises(loop.NonFiniteLoss, match=r"step 13 \(batch of step 12\).*checkpoint is step 10"):
        run(tmp_path, poison=12, describe_batch=lambda step: f"batch of step {step}")
    assert Checkpoints(tmp_path / "checkpoints").latest_step() == 10


def test_a_signal_saves_and_the_run_resumes(tmp_path):
    def interrupted(first, tables):
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


def test_a_hook_writes_tables_that_later_batches_read(tmp_path):
    """The table holds the step it was made at; batches carry it as their targets."""
    read = []

    class Hook:
        every = 4

        def __call__(self, state):
            return {"shift": np.array([float(state.step)])}

    def shifted(first, tables):
        for number, batch in enumerate(batches(first), first + 1):
            read.append((number, float(tables["shift"][0])))
            yield {**batch, "y": batch["y"] + np.float32(tables["shift"][0])}

    def train(folder, total):
        schedule = loop.Schedule(total, log_every=3, eval_every=100, save_every=3, keep_checkpoints=1)
        return loop.train(
            Regression(), optax.adam(0.1), shifted, schedule, folder,
            hooks=[Hook()], tables={"shift": np.zeros(1)},
        )  # fmt: skip

    whole = train(tmp_path / "whole", 11)
    taken = dict(read[1:])  # the first is only looked at for its shapes
    assert taken == {n: float((n - 1) // 4 * 4) for n in range(1, 12)}
    # Step 6, the newest checkpoint when the table of step 8 was made, still names that of step 4.
    made = {p.name for p in (tmp_path / "whole" / "tables").iterdir()}
    assert made == {"shift-4.npy", "shift-8.npy"}
    train(tmp_path / "cut", 6)
    resumed = train(tmp_path / "cut", 11)
    np.testing.assert_array_equal(whole.params["w"], resumed.params["w"])


def test_a_run_stopped_where_an_evaluation_is_due_saves_first_and_evaluates_when_it_goes_on(tmp_path):
    seen = []

    def evaluator(state):
        seen.append(int(state.step))
        yield "dev/measure", 1.0 / (1 + int(state.step))

    def stopping(first, tables):
        for number, batch in enumerate(batches(first), first + 1):
            if number == 10 and first == 0:  # made while step 9 runs; step 10 evaluates
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    def train(folder, stream):
        schedule = loop.Schedule(20, log_every=4, eval_every=1, save_every=7, best_measure="dev/measure")
        return loop.train(Regression(), optax.adam(0.1), stream, schedule, folder, evaluators=[evaluator])

    with pytest.raises(Interrupted) as stop:
        train(tmp_path / "cut", stopping)
    assert seen[-1] < stop.value.step  # the state was saved without waiting for an evaluation
    train(tmp_path / "cut", batches)
    train(tmp_path / "whole", batches)
    rows = [[metrics.without_time(row) for row in metrics.read(tmp_path / name)] for name in ("whole", "cut")]
    assert rows[0] == rows[1]
    bests = [Checkpoints(tmp_path / name / "checkpoints").best_value() for name in ("whole", "cut")]
    assert bests[0] == bests[1] == 0.5


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(tmp_path, capsys):
    whole = run(tmp_path / "whole", save_every=4)
    run(tmp_path / "cut", total=12, save_every=4)
    newest = tmp_path / "cut" / "checkpoints" / "latest" / "12"
    file = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(file, 10)
    resumed = run(tmp_path / "cut", save_every=4)
    assert f"checkpoint {newest} is damaged" in capsys.readouterr().err
    np.testing.assert_array_equal(whole.params["w"], resumed.params["w"])


def test_a_run_can_begin_with_given_parameters(tmp_path):
    state = run(
        tmp_path, total=1, initialize=lambda params, state: ({"w": np.full_like(params["w"], 7.0)}, state)
    )
    np.testing.assert_allclose(state.params["w"], 7.0, atol=0.11)  # one step of Adam at 0.1
    again = run(
        tmp_path, total=2, initialize=lambda params, state: ({"w": np.full_like(params["w"], 50.0)}, state)
    )
    assert np.max(np.abs(again.params["w"])) < 8  # only where it begins


def test_the_moving_average_is_what_is_evaluated(tmp_path):
    found = []

    def evaluator(state):
        found.append((np.array(state.eval_params["w"]), np.array(state.params["w"])))
        yield "dev/measure", 0.5

    run(tmp_path, total=10, evaluators=[evaluator], schedule={"average_decay": 0.9})
    first, last = found
    np.testing.assert_array_equal(first[0], first[1])
    assert np.max(np.abs(last[0] - last[1])) > 1e-3


def test_times_are_logged_apart_from_what_is_computed(tmp_path):
    run(tmp_path)
    row = metrics.read(tmp_path)[0]
    times = {name.removeprefix("time/") for name in row if name.startswith("time/")}
    assert times == {
        "unix", "seconds", "steps_per_second", "tokens_per_second", "flops_per_second", "input_wait_seconds",
        "compile_seconds", "step_seconds_median", "step_seconds_p95", "step_seconds_max",
    }  # fmt: skip
    assert row["time/compile_seconds"] > 0
    assert row["time/step_seconds_median"] <= row["time/step_seconds_max"] <= row["time/seconds"]
    assert set(metrics.without_time(row)) == {"step", "loss", "error", "grad_norm", "update_norm"}
    total = sum(r["time/seconds"] for r in metrics.read(tmp_path))
    assert metrics.training_seconds(tmp_path) == round(total, 1)


def test_microbatches_are_announced_and_must_fit(tmp_path, capsys):
    run(tmp_path / "fits", total=1, schedule={"microbatches": 2})
    assert "such as in-batch negatives, it compares within a microbatch only" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"16 rows, which 8 parts .* times 4 microbatches do not"):
        run(tmp_path / "not", schedule={"microbatches": 4})


def test_a_checkpoint_names_the_tables_of_its_own_step(tmp_path, monkeypatch):
    """Its files are still being written when the hook of the next step has made another table."""
    slow = checkpoints_module.digest
    monkeypatch.setattr(checkpoints_module, "digest", lambda file: (time.sleep(0.02), slow(file))[1])

    class Hook:
        every = 4

        def __call__(self, state):
            return {"shift": np.array([float(state.step)])}

    schedule = loop.Schedule(5, log_every=3, eval_every=100, save_every=3)
    loop.train(Regression(), optax.adam(0.1), batches, schedule, tmp_path, hooks=[Hook()])
    latest = tmp_path / "checkpoints" / "latest"
    assert checkpoints_module.position(latest / "3")["tables"] == {}
    assert checkpoints_module.position(latest / "5")["tables"]["shift"]["file"] == "tables/shift-4.npy"


class RowByRow(Regression):
    """Its state follows the rows of the batch, which eight devices share."""

    def init(self, rng, batch):
        params, state = super().init(rng, batch)
        return params, {**state, "queue": jnp.zeros((16, 3))}

    def loss(self, params, state, batch, rng, *, train):
        error, (new, metrics) = super().loss(params, state, batch, rng, train=train)
        return error, ({**new, "queue": 0.5 * state["queue"] + batch["x"]}, metrics)


def test_a_state_that_follows_the_rows_of_the_batch_on_eight_devices(tmp_path):
    schedule = loop.Schedule(4, log_every=2, eval_every=9, save_every=3)
    one, eight = (
        loop.train(
            RowByRow(), optax.adam(0.1), batches, schedule, tmp_path / str(count), mesh=data_mesh(devices)
        )
        for count, devices in ((1, jax.devices()[:1]), (8, jax.devices()))
    )
    np.testing.assert_allclose(one.state["queue"], eight.state["queue"], rtol=1e-5)


def test_each_row_counts_the_operations_of_its_own_steps(tmp_path):
    run(tmp_path, total=12, save_every=5)
    counted = [row["time/flops_per_second"] * row["time/seconds"] for row in metrics.read(tmp_path)]
    steps = [5, 5, 2]
    per_step = [count / number for count, number in zip(counted, steps, strict=True)]
    assert per_step[0] > 100
    assert per_step == pytest.approx([per_step[0]] * 3)


class Weak(Regression):
    """A Python number among the parameters, and a product whose dtype it decides."""

    def init(self, rng, batch):
        params, state = super().init(rng, batch)
        return {**params, "scale": 1.3}, state

    def loss(self, params, state, batch, rng, *, train):
        rounded = {**params, "w": (params["w"].astype(jnp.bfloat16) * params["scale"]).astype(jnp.float32)}
        return super().loss(rounded, state, batch, rng, train=train)


@pytest.mark.slow
def test_a_python_number_computes_alike_before_and_after_a_restore(tmp_path):
    def train(folder, total):
        schedule = loop.Schedule(total, log_every=2, eval_every=9, save_every=3)
        return loop.train(Weak(), optax.sgd(0.1), batches, schedule, tmp_path / folder)

    whole = train("whole", 8)
    train("cut", 3)
    resumed = train("cut", 8)
    np.testing.assert_array_equal(whole.params["scale"], resumed.params["scale"])
    np.testing.assert_array_equal(whole.params["w"], resumed.params["w"])


def test_two_processes_in_one_run_directory_are_refused(tmp_path):
    with exclusive(tmp_path), pytest.raises(LockedError, match="another process is at work in"):
        run(tmp_path)
    run(tmp_path, total=1)


def test_a_failed_save_does_not_hide_what_went_wrong_first(tmp_path, monkeypatch, capsys):
    def fail(self):
        raise CheckpointError("checkpoint 5 cannot be saved: No space left on device")

    def evaluator(state):
        if int(state.step) == 10:
            monkeypatch.setattr(Checkpoints, "wait", fail)
            raise ZeroDivisionError("the evaluator")
        yield "dev/measure", 0.5

    with pytest.raises(ZeroDivisionError, match="the evaluator"):
        run(tmp_path / "a", save_every=5, evaluators=[evaluator])
    assert "also: checkpoint 5 cannot be saved" in capsys.readouterr().err
    monkeypatch.undo()

    def poisoned(first, tables):
        for number, batch in enumerate(batches(first, poison=7), first + 1):
            if number == 8:
                monkeypatch.setattr(Checkpoints, "wait", fail)
            yield batch

    schedule = loop.Schedule(20, log_every=5, eval_every=10, save_every=5)
    with pytest.raises(
        loop.NonFiniteLoss, match=r"step 8 \(batch 7\); checkpoint 5 cannot be saved: No space"
    ):
        loop.train(Regression(), optax.adam(0.1), poisoned, schedule, tmp_path / "b")


def test_a_full_disk_that_ended_tensorboards_thread_is_an_error_and_no_deadlock(tmp_path):
    writer = metrics.MetricWriter(tmp_path)
    worker = writer._board.file_writer.event_writer._worker
    worker.stop()
    worker.join(timeout=10)
    with pytest.raises(OSError, match="TensorBoard events cannot be written"):
        writer.write(1, {f"metric {number}": 1.0 for number in range(100)})  # more than its queue holds
    writer.close()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ({"error": jnp.zeros(3)}, r"metric 'error' has shape \(3,\); allowed: a scalar"),
        ({"loss": jnp.zeros(())}, "metric 'loss' is the loop's own"),
    ],
)
def test_metrics_that_cannot_be_averaged_are_refused(tmp_path, metric, message):
    class Bad(Regression):
        def loss(self, params, state, batch, rng, *, train):
            error, (state, _) = super().loss(params, state, batch, rng, train=train)
            return error, (state, metric)

    with pytest.raises(ValueError, match=message):
        loop.train(Bad(), optax.adam(0.1), batches, loop.Schedule(2), tmp_path)


def test_a_stream_that_ends_early_is_an_error(tmp_path):
    short = lambda first, tables: itertools.islice(batches(first), 3)
    with pytest.raises(ValueError, match="the iterator ended before the last step"):
        loop.train(Regression(), optax.adam(0.1), short, loop.Schedule(5), tmp_path)
