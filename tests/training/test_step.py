import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training.mesh import data_mesh, replicate, shard_batch
from training.step import empty_window, make_step, split, watched
from training.task import create


@dataclasses.dataclass(frozen=True)
class Regression:
    """y = x w; counts rows in its state, once a step, from the sums of its batches."""

    def init(self, rng, batch):
        return {"w": jax.random.normal(rng, (batch["x"].shape[1],))}, {"rows": jnp.float32(0), "calls": 0}

    def loss(self, params, state, batch, rng, *, train):
        error = jnp.mean(jnp.square(batch["x"] @ params["w"] - batch["y"]))
        return error, (state, {"error": error, "sums": {"rows": jnp.float32(batch["x"].shape[0])}})

    def update_state(self, state, sums):
        return {"rows": state["rows"] + sums["rows"], "calls": state["calls"] + 1}


def batch(seed=0, rows=16):
    x = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)
    return {"x": x, "y": x @ np.array([1.0, -2.0, 0.5], np.float32), "mask": np.tri(rows, 4, dtype=np.int32)}


def start(optimizer, task=None, **kwargs):
    return create(task or Regression(), optimizer, jax.random.key(0), batch(), **kwargs)


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.max(np.abs(x - y)) <= 1e-5 * max(np.max(np.abs(y)), 1e-30)


def test_microbatches_average_to_the_whole_batch():
    optimizer = optax.adam(0.1)
    state = start(optimizer)
    one, one_metrics = jax.jit(make_step(Regression(), optimizer))(state, batch(), jax.random.key(1))
    four, four_metrics = jax.jit(make_step(Regression(), optimizer, microbatches=4))(
        state, batch(), jax.random.key(1)
    )
    close(one, four)
    close(one_metrics, four_metrics)
    assert one.state == four.state == {"rows": 16.0, "calls": 1}  # update_state once, on the sum


@dataclasses.dataclass(frozen=True)
class Told(Regression):
    """Logs what it is told of the other microbatches."""

    accumulation: str | None = None

    def survey(self, params, state, batch, rng):
        return {"first": batch["x"][0, 0], "rng": jax.random.uniform(rng)}

    def loss(self, params, state, batch, rng, *, train, others=None):
        error, (state, metrics) = super().loss(params, state, batch, rng, train=train)
        told = {"told": float(others is not None), "number": 0.0, "before": 0.0, "of_all": 0.0, "same": 1.0}
        if others is not None:
            told |= {"number": others.number, "before": others.before["rows"]}
        if others is not None and others.all is not None:
            own = jax.tree.map(lambda x: x[others.number], others.all)
            same = jax.tree.map(jnp.array_equal, own, self.survey(params, state, batch, rng))
            told |= {"of_all": others.all["first"].sum(), "same": same["first"] & same["rng"]}
        return error, (state, {**metrics, **told})


@pytest.mark.parametrize("accumulation", [None, "alone", "running", "two_pass"])
def test_a_loss_is_told_of_other_microbatches_if_it_asks(accumulation):
    task, optimizer = Told(accumulation), optax.sgd(0.1)
    run = lambda microbatches: jax.jit(make_step(task, optimizer, microbatches=microbatches))(
        start(optimizer, task), batch(), jax.random.key(1)
    )
    assert run(1)[1]["told"] == 0
    new, metrics = run(4)
    asks = accumulation in ("running", "two_pass")
    # Metrics are means over microbatches 0 to 3 of four rows each.
    assert (metrics["told"], metrics["number"], metrics["before"]) == ((1, 1.5, 6) if asks else (0, 0, 0))
    of_all = batch()["x"][::4, 0].sum() if accumulation == "two_pass" else 0.0
    assert metrics["of_all"] == pytest.approx(of_all, rel=1e-5)
    assert metrics["same"] == 1
    assert new.state["rows"] == 16


def test_microbatches_on_eight_devices_equal_those_on_one():
    optimizer = optax.adam(0.1)
    found = []
    for mesh in (data_mesh(jax.devices()[:1]), data_mesh()):
        step = jax.jit(make_step(Regression(), optimizer, microbatches=2, mesh=mesh))
        placed = shard_batch(batch(), mesh, parts=2)
        found.append(jax.device_get(step(replicate(start(optimizer), mesh), placed, jax.random.key(1))))
    close(*found)


def test_split_keeps_the_order_and_refuses_what_does_not_divide():
    np.testing.assert_array_equal(split({"x": np.arange(6)}, 3)["x"], [[0, 1], [2, 3], [4, 5]])
    with pytest.raises(ValueError, match="microbatches is 4, which does not divide the 6 rows of x"):
        split({"x": np.arange(6)}, 4)


def test_the_average_by_hand():
    optimizer = optax.sgd(0.1)
    state = start(optimizer, average=True)
    step = make_step(Regression(), optimizer, average_decay=0.9)
    first, _ = step(state, batch(), jax.random.key(1))
    second, _ = step(first, batch(), jax.random.key(1))
    w0, w1, w2 = (s.params["w"] for s in (state, first, second))
    np.testing.assert_allclose(first.average["w"], 0.9 * w0 + 0.1 * w1, rtol=1e-6)
    np.testing.assert_allclose(second.average["w"], 0.81 * w0 + 0.09 * w1 + 0.1 * w2, rtol=1e-6)
    assert second.eval_params is second.average
    plain = start(optimizer)
    assert plain.eval_params is plain.params


def test_a_task_may_put_its_own_update_around_the_plain_step():
    class Twice(Regression):
        def update(self, train_state, batch, rng, gradient_step):
            train_state, _ = gradient_step(train_state, batch, rng)
            train_state, metrics = gradient_step(train_state, {**batch, "x": -batch["x"]}, rng)
            return train_state, {**metrics, "extra": jnp.float32(7)}

    optimizer = optax.sgd(0.1)
    state, metrics = make_step(Twice(), optimizer)(start(optimizer), batch(), jax.random.key(1))
    assert (int(state.step), state.state["calls"], float(metrics["extra"])) == (1, 2, 7.0)
    plain = make_step(Regression(), optimizer)
    once, _ = plain(start(optimizer), batch(), jax.random.key(1))
    again, _ = plain(once, {**batch(), "x": -batch()["x"]}, jax.random.key(1))
    np.testing.assert_allclose(state.params["w"], again.params["w"], rtol=1e-6)


def test_the_window_sums_and_notices_the_first_bad_step():
    optimizer = optax.sgd(0.1)
    step = make_step(Regression(), optimizer)
    state = start(optimizer)
    names = jax.eval_shape(step, state, batch(), jax.random.key(1))[1]
    signals = np.array([0, 15, 2], np.int32)
    window, run = empty_window(names), jax.jit(watched(step))
    losses = []
    for number in range(1, 5):
        given = batch(seed=number)
        if number == 3:
            given["y"] = given["y"] * np.nan
        before = state
        state, window, signal = run(state, window, given, jax.random.key(1), signals)
        losses.append(float(step(before, given, jax.random.key(1))[1]["loss"]))
        assert int(signal) == 15
        assert int(state.step) == number
        if number == 2:
            assert (int(window.first_bad), float(window.steps)) == (-1, 2.0)
            assert float(window.sums["loss"]) == pytest.approx(sum(losses))
            # np.tri(16, 4) has 1 + 2 + 3 + 13 * 4 = 58 ones of 64.
            assert (float(window.tokens), float(window.slots)) == (116.0, 128.0)
    assert int(window.first_bad) == 3


def test_an_unknown_accumulation_is_refused():
    """Rather than leaving each microbatch alone."""

    class Unknown(Regression):
        accumulation = "twopass"

    optimizer = optax.sgd(0.1)
    step = make_step(Unknown(), optimizer, microbatches=2)
    with pytest.raises(ValueError, match="accumulation is 'twopass'; allowed: None, 'alone', 'running'"):
        step(start(optimizer), batch(), jax.random.key(0))
