"""Consistency regularization: against loops in NumPy, by hand, and its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from generative_retrieval.consistency import Consistency
from generative_retrieval.models import Spelled
from generative_retrieval.task import cross_entropy
from training.build import SpecError, build

Q, T, D = 3, 4, 6
SPEC = {"name": "generative_retrieval.consistency.Consistency", "weight": 0.15}
compiled = jax.jit(Consistency().loss)


def draw(seed=0):
    rng = np.random.default_rng(seed)
    where = np.repeat(np.arange(T)[None] < np.array([[4], [2], [3]]), 2, axis=0)
    return rng.normal(size=(2 * Q, T, D)).astype(np.float32), where


def loops(last, where, temperature):
    lost = []
    for row in range(len(last)):
        for t in range(T):
            if where[row, t]:
                others = [k for k in range(len(last)) if k != row and where[k, t]]
                similar = {k: last[row, t] @ last[k, t] / D / temperature for k in others}
                own = row + 1 if row % 2 == 0 else row - 1
                lost.append(np.log(sum(np.exp(s) for s in similar.values())) - similar[own])
    return np.mean(lost)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_equals_loops(temperature):
    last, where = draw()
    loss = jax.jit(Consistency(temperature=temperature).loss)(last, where)
    np.testing.assert_allclose(loss, loops(last, where, temperature), rtol=1e-5)


def test_by_hand():
    # two queries of one position, D = 1: passes 1, 1 and 0, 0
    last = jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(4, 1, 1)
    # first query: log(e^1 + e^0 + e^0) - 1, both passes; second: log 3 - 0
    expected = (np.log(np.e + 2) - 1 + np.log(3)) / 2
    np.testing.assert_allclose(compiled(last, jnp.ones((4, 1), bool)), expected, rtol=1e-6)


def test_each_row_twice_side_by_side():
    batch = Consistency().twice({"tokens": jnp.arange(6).reshape(3, 2), "documents": jnp.arange(3)})
    assert batch["documents"].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch["tokens"][:, 0].tolist() == [0, 0, 2, 2, 4, 4]


def test_hidden_positions_have_no_gradient_and_no_say():
    last, where = draw()
    where[4:] = False  # a query without any position
    other = np.where(where[:, :, None], last, 7.0).astype(np.float32)
    loss, gradient = jax.jit(jax.value_and_grad(Consistency().loss))(last, where)
    np.testing.assert_allclose(compiled(other, where), loss, rtol=1e-6)
    gradient = np.asarray(gradient)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:4, :2]).min() > 0
    assert (gradient[~where] == 0).all()


def test_nothing_shown_is_no_loss():
    assert compiled(jnp.ones((2 * Q, T, D)), jnp.zeros((2 * Q, T), bool)) == 0


@pytest.mark.parametrize("field", ["weight", "temperature"])
def test_refuses(field):
    with pytest.raises(SpecError, match=f"{field} is 0; it must be positive"):
        build({**SPEC, field: 0})


class Stub(nn.Module):
    """Reads the text's first tokens alone."""

    @nn.compact
    def __call__(self, batch, *, train=False):
        x_BTD = nn.Embed(20, D)(batch["tokens"][:, :T])
        x_BTD = nn.Dropout(0.5, deterministic=not train)(x_BTD)
        return Spelled(nn.Dense(5)(x_BTD), {}, last=x_BTD)


@pytest.mark.slow
def test_as_an_option_of_the_task():
    task = build(
        {"name": "generative_retrieval.task.SequenceToSequence", "model": Stub(), "consistency": SPEC}
    )
    tokens = jnp.arange(Q * T).reshape(Q, T)
    shown = jnp.asarray(draw()[1][::2])
    batch = {"tokens": tokens, "mask": shown, "targets": tokens % 5, "target_mask": shown}
    key = jax.random.key(1)

    @jax.jit
    def run(key):
        params, state = task.init(key, batch)
        model = functools.partial(task.model.apply, {"params": params["model"]})
        twice = task.consistency.twice(batch)
        spelled = model(twice, train=True, rngs={"dropout": key})
        return (
            (spelled.last, cross_entropy(spelled.logits, twice)[0], twice["target_mask"]),
            cross_entropy(model(batch).logits, batch)[0],
            *(task.loss(params, state, batch, key, train=train) for train in (True, False)),
        )

    (last, of_both, shown), of_one, (loss, (_, metrics)), (without, (_, plain)) = run(key)
    apart = compiled(last, shown)
    np.testing.assert_allclose(loss, of_both + 0.15 * apart, rtol=1e-6)
    np.testing.assert_allclose(metrics["consistency"], apart, rtol=1e-6)
    assert np.abs(last[0] - last[1]).max() > 0.01  # dropout differs
    np.testing.assert_allclose(without, of_one, rtol=1e-6)
    assert "consistency" not in plain
