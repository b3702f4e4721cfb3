import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_encoder.objectives import pairwise


def slow_sigmoid(q, d, labels, where, temperature, bias, weights):
    total = 0.0
    for b in range(len(q)):
        for n in range(len(d)):
            if where[b, n]:
                z = 1 if n == labels[b] else -1
                total -= weights[b] * np.log(1 / (1 + np.exp(-z * (q[b] @ d[n] / temperature + bias))))
    return total / len(q)


def slow_listed_triplet(q, d, labels, where, weights, margin):
    total = 0.0
    for b in range(len(q)):
        others = [n for n in range(labels[b] + 1, labels[b] + len(d) // len(q)) if where[b, n]]
        lost = [max(0.0, margin - q[b] @ d[labels[b]] + q[b] @ d[n]) for n in others]
        total += weights[b] * (np.mean(lost) if lost else 0.0)
    return total / len(q)


def slow_hardest_triplet(q, d, labels, where, weights, margin):
    total = 0.0
    for b in range(len(q)):
        hardest = max(q[b] @ d[n] for n in range(len(d)) if where[b, n] and n != labels[b])
        total += weights[b] * max(0.0, margin - q[b] @ d[labels[b]] + hardest)
    return total / len(q)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_sigmoid_equals_the_formula(seed, assert_follows):
    assert_follows(pairwise.sigmoid, slow_sigmoid, seed)


@pytest.mark.parametrize(
    ("objective", "formula"),
    [
        (pairwise.listed_triplet, slow_listed_triplet),
        (pairwise.hardest_triplet, slow_hardest_triplet),
    ],
)
def test_triplets_equal_the_formula(objective, formula, assert_follows):
    margins = dict(margin=0.3)
    assert_follows(functools.partial(objective, **margins), functools.partial(formula, **margins))


@pytest.mark.slow
def test_the_bias_and_the_temperature_of_sigmoid_have_gradients(example, pick):
    q, d, given = example()
    handed = {**pick(pairwise.sigmoid, given), "bias": 0.0, "temperature": 1.0}
    loss = lambda bias, t: pairwise.sigmoid(q, d, **{**handed, "bias": bias, "temperature": t})[0]
    of_bias, of_temperature = jax.grad(loss, argnums=(0, 1))(-10.0, 0.1)
    assert of_bias < 0  # at -10 all that is wrong is the positives
    assert of_temperature != 0


def test_of_a_listed_negative_and_the_hardest_by_hand():
    # Query 0 scores its own 0.9 and its listed negative 0.3, query 1 0.5 and 0.4. In the batch they meet 0.8
    # and 0.6.
    q = jnp.eye(2)
    d = jnp.array([[0.9, 0.6], [0.3, 0.1], [0.8, 0.5], [0.0, 0.4]])
    arrays = dict(labels=jnp.array([0, 2]), where=jnp.ones((2, 4), bool), margin=0.2)
    loss, metrics = pairwise.listed_triplet(q, d, **arrays)
    np.testing.assert_allclose(loss, (0 + (0.2 - 0.5 + 0.4)) / 2, rtol=1e-5)
    assert (float(metrics["active"]), float(metrics["accuracy"])) == (0.5, 1.0)
    loss, metrics = pairwise.hardest_triplet(q, d, **arrays)
    np.testing.assert_allclose(loss, ((0.2 - 0.9 + 0.8) + (0.2 - 0.5 + 0.6)) / 2, rtol=1e-5)
    assert (float(metrics["active"]), float(metrics["accuracy"])) == (1.0, 0.5)


def test_what_is_missing_is_refused(example, pick):
    q, d, given = example(listed=1)
    handed = pick(pairwise.listed_triplet, given)
    with pytest.raises(ValueError, match=r"queries list 0 negatives; allowed: config.batch.negatives_per"):
        pairwise.listed_triplet(q, d, **handed)
    with pytest.raises(ValueError, match="margin is 0; it must be positive"):
        pairwise.hardest_triplet(q, d, **handed, margin=0)


def test_examples_in_docstrings():
    assert doctest.testmod(pairwise).failed == 0
