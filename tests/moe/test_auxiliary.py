"""What a Task does with sums: weighted losses, metrics, biases, and batches that come in microbatches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe import balance
from moe.auxiliary import Auxiliary
from training.step import make_step
from training.task import create

Y, B, D, E, M = 2, 8, 3, 4, 4
LOSSES = {
    "balance": balance.load_balancing,
    "parts": functools.partial(balance.micro_load_balancing, parts=2),
    "sequence": balance.sequence_load_balancing,
    "importance": balance.importance,
    "z": balance.router_z,
    "local": functools.partial(balance.local_entropy, domains=(0, 1)),
    "global": functools.partial(balance.global_entropy, domains=(0, 1), threshold=5.0),
}
WEIGHTS = {name: 0.5 + number for number, name in enumerate(LOSSES)}


class Routers:
    """Y layers of top-1 routers on tokens that do not change; the loss is the auxiliary one alone."""

    def __init__(self, auxiliary, noise=0.0):
        self.auxiliary, self.accumulation, self._noise = auxiliary, auxiliary.accumulation, noise

    def init(self, rng, batch):
        return {"kernel": jax.random.normal(rng, (Y, D, E))}, {}

    def survey(self, params, state, batch, rng):
        logits = jnp.einsum("bld,yde->yble", batch["x"], params["kernel"])
        logits += self._noise * jax.random.normal(rng, logits.shape)
        valid = batch["mask"].astype(jnp.float32)
        probability = jax.nn.softmax(logits)
        chosen = (logits == logits.max(-1, keepdims=True)).astype(jnp.float32)
        of_rows = lambda x: (x * valid[None, :, :, None]).sum(2)
        by_row = lambda x: of_rows(x[..., None])[..., 0]
        sums = {
            "count": of_rows(chosen),
            "served": of_rows(chosen),
            "weight": of_rows(probability * chosen),
            "probability": of_rows(probability),
            "tokens": by_row(jnp.ones(logits.shape[:-1])),
            "dropped": jnp.zeros(logits.shape[:2]),
            "z": by_row(jnp.square(jax.nn.logsumexp(logits, axis=-1))),
            "entropy": by_row(jax.scipy.special.entr(probability).sum(-1)),
            "domains": batch["domains"],
        }
        return {"": sums}

    def loss(self, params, state, batch, rng, *, train, others=None):
        loss, metrics = self.auxiliary.loss(self.survey(params, state, batch, rng), others)
        return loss, (state, metrics)

    def update_state(self, state, sums):
        return {"counted": sums[""]["count"].sum(1)}


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(B, 5, D)).astype(np.float32) + rng.normal(size=(B, 1, D)).astype(np.float32),
        "mask": (np.arange(5)[None] < rng.integers(1, 6, (B, 1))).astype(np.int32),
        "domains": np.arange(B, dtype=np.int32) % 2,
    }


def gradient_of(accumulation, microbatches, losses=LOSSES, noise=0.0):
    """The gradient of one step (its update under SGD), its metrics, and the counts it was told of."""
    task = Routers(
        Auxiliary(losses, {name: WEIGHTS[name] for name in losses}, accumulation=accumulation), noise
    )
    optimizer = optax.sgd(1.0)
    state = create(task, optimizer, jax.random.key(0), batch())
    new, metrics = jax.jit(make_step(task, optimizer, microbatches=microbatches))(
        state, batch(), jax.random.key(1)
    )
    return state.params["kernel"] - new.params["kernel"], metrics, new.state["counted"]


def close(a, b):
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * np.abs(b).max()


@pytest.fixture(scope="module")
def whole():
    return gradient_of("two_pass", 1)


def test_two_passes_over_microbatches_are_the_batch_in_one_piece(whole):
    grad, metrics, counted = gradient_of("two_pass", M)
    close(grad, whole[0])
    for name in (*(f"moe/{name}" for name in LOSSES), "loss"):
        close(metrics[name], whole[1][name])
    np.testing.assert_array_equal(counted, whole[2])


@pytest.mark.slow
def test_microbatches_alone_are_not(whole):
    grad, _, counted = gradient_of("alone", M)
    assert np.abs(grad - whole[0]).max() > 0.01 * np.abs(whole[0]).max()
    np.testing.assert_array_equal(counted, whole[2])


def test_the_two_passes_draw_the_same_noise():
    """Were the survey's random keys others than the loss's, the counts of a microbatch would not be its own:
    here, a noise so strong that it alone decides."""
    task = Routers(Auxiliary(LOSSES, WEIGHTS, accumulation="two_pass"), noise=30.0)
    seen = []

    def loss(params, state, batch, rng, *, train, others=None):
        own = task.survey(params, state, batch, rng)
        if others is not None:
            told = jax.tree.map(lambda x: x[others.number], others.all)
            seen.append(1)
            same = jnp.abs(own[""]["count"] - told[""]["count"]).max()
            return same + 0.0 * params["kernel"].sum(), (state, {"different": same, "sums": {"": {}}})
        return params["kernel"].sum(), (state, {"different": jnp.float32(0), "sums": {"": {}}})

    class Compared:
        accumulation, init, survey = "two_pass", staticmethod(task.init), staticmethod(task.survey)

    compared = Compared()
    compared.loss = loss
    state = create(compared, optax.sgd(1.0), jax.random.key(0), batch())
    _, metrics = jax.jit(make_step(compared, optax.sgd(1.0), microbatches=M))(
        state, batch(), jax.random.key(1)
    )
    assert seen
    assert metrics["different"] == 0.0


def test_the_running_buffer_by_hand():
    """f of the counts so far in the step, P of the microbatch: Qiu et al. (2025)."""
    grad, metrics, _ = gradient_of("running", M, {"balance": LOSSES["balance"]})
    task = Routers(Auxiliary({}, {}))
    kernel = create(task, optax.sgd(1.0), jax.random.key(0), batch()).params

    def loss(params):
        total, count = 0.0, 0.0
        for number in range(M):
            part = {name: x[number * 2 : number * 2 + 2] for name, x in batch().items()}
            sums = task.survey(params, {}, part, jax.random.key(0))[""]
            count = count + sums["count"].sum(1)
            f = count / count.sum(-1, keepdims=True)
            p = sums["probability"].sum(1) / sums["tokens"].sum(1)[:, None]
            total += WEIGHTS["balance"] * E * (f * p).sum(-1).mean() / M
        return total

    value, expected = jax.jit(jax.value_and_grad(loss))(kernel)
    close(grad, expected["kernel"])
    close(metrics["loss"], value)


def sums(experts=E):
    zeros = {name: jnp.zeros((Y, B)) for name in ("tokens", "dropped")}
    count = jnp.zeros((Y, B, experts)).at[0, :, 0].set(2.0).at[1].set(1.0)
    return {**zeros, "count": count, "served": count, "tokens": jnp.full((Y, B), 4.0)}


def test_weights_and_encoders():
    auxiliary = Auxiliary(
        {"a": lambda s: s["tokens"].mean(), "b": lambda s: s["count"].sum()}, {"a": 2.0, "b": 0.5}
    )
    other = {**sums(), "tokens": jnp.full((Y, B), 6.0)}
    loss, metrics = auxiliary.loss({"query": sums(), "document": other})
    assert metrics["moe/a"] == pytest.approx(5.0)
    assert metrics["moe/b"] == pytest.approx(2 * B + B * E)
    assert loss == pytest.approx(2 * 5 + 0.5 * (2 * B + B * E))


def test_metrics_by_hand():
    one = {**sums(), "dropped": jnp.ones((Y, B)), "entropy": jnp.full((Y, B), 2.0)}
    _, metrics = Auxiliary({}, {}).loss({"": one})
    assert metrics["moe/dropped"] == pytest.approx(2 * B / (2 * B + B * E))
    assert metrics["moe/load_max"] == pytest.approx(4.0)  # in layer 0 one expert of four has all
    assert metrics["moe/entropy"] == pytest.approx(0.5)
    assert "moe/entropy" not in Auxiliary({}, {}).loss({"": sums()})[1]


def move(bias, count):
    assert bias.shape == count.shape
    return bias + jnp.sign(count.mean(-1, keepdims=True) - count)


def test_each_bias_moves_by_the_counts_of_its_layer():
    of = lambda bias: {"encoder": {"block": {"sparse": {"router": {"bias": bias, "other": jnp.ones(())}}}}}
    state = {"balance": {"query": of(jnp.zeros((Y, E))), "document": of(jnp.full((Y, E), 3.0))}, "else": 1}
    reverse = {"count": sums()["count"][::-1]}
    new = Auxiliary({}, {}, move).update_state(state, {"query": sums(), "document": reverse})
    uneven, even = [-1, 1, 1, 1], [0, 0, 0, 0]
    expected = {
        "balance": {
            "query": of(np.array([uneven, even])),
            "document": of(np.array([even, uneven]) + 3.0),
        },
        "else": 1,
    }
    jax.tree.map(np.testing.assert_array_equal, new, expected)
    alone = Auxiliary({}, {}, move).update_state({"balance": of(jnp.zeros((Y, E)))}, {"": sums()})
    jax.tree.map(np.testing.assert_array_equal, alone, {"balance": expected["balance"]["query"]})


def test_what_is_refused():
    with pytest.raises(ValueError, match="weights has z; allowed: one for each of losses, balance"):
        Auxiliary({"balance": balance.load_balancing}, {"z": 1.0})
    with pytest.raises(ValueError, match=r"losses\['balance'\] is 0.1; allowed: a function"):
        Auxiliary({"balance": 0.1}, {"balance": 1.0})
    with pytest.raises(ValueError, match="accumulation is 'buffer'; allowed: 'alone', 'running', 'two_pass'"):
        Auxiliary({}, {}, accumulation="buffer")
    with pytest.raises(ValueError, match="sums is empty"):
        Auxiliary({}, {}).loss({})
    state = {"balance": {"router": {"bias": jnp.zeros((Y, E))}}}
    with pytest.raises(ValueError, match="bias_update is None, but the routers have a bias"):
        Auxiliary({}, {}).update_state(state, {"": sums()})
    with pytest.raises(ValueError, match="but no router has a bias; allowed: None"):
        Auxiliary({}, {}, move).update_state({}, {"": sums()})
    with pytest.raises(ValueError, match=r"balance/router/bias \(2, 4\): allowed .* \(2, 5\)"):
        Auxiliary({}, {}, move).update_state(state, {"": sums(experts=5)})
    assert Auxiliary({}, {}).update_state({}, {"": sums()}) == {}
