import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_encoder.objectives import focal
from dual_encoder.objectives.focal import focal_info_nce
from dual_encoder.objectives.softmax import info_nce


def slow_focal(q, d, labels, where, temperature, weights, gamma):
    total = 0.0
    for b in range(len(q)):
        exps = {n: np.exp(q[b] @ d[n] / temperature) for n in range(len(d)) if where[b, n]}
        p = exps[labels[b]] / sum(exps.values())
        total -= weights[b] * (1 - p) ** gamma * np.log(p)
    return total / len(q)


@pytest.mark.parametrize("gamma", [0.5, pytest.param(2.0, marks=pytest.mark.slow)])
def test_equals_the_formula(gamma, assert_follows):
    assert_follows(*(functools.partial(f, gamma=gamma) for f in (focal_info_nce, slow_focal)))


def test_without_gamma_it_is_info_nce(example, pick):
    q, d, given = example(1)
    found, _ = focal_info_nce(q, d, **pick(focal_info_nce, given), gamma=0)
    assert float(found) == float(info_nce(q, d, **pick(info_nce, given))[0])


def test_what_is_answered_for_certain_has_neither_weight_nor_gradient():
    # p rounds to 1: the root of 1 - p has no derivative there.
    q, d = jnp.eye(2), 100 * jnp.eye(2)
    arrays = dict(labels=jnp.arange(2), where=jnp.ones((2, 2), bool), temperature=0.1)
    loss, gradient = jax.value_and_grad(lambda q: focal_info_nce(q, d, **arrays)[0])(q)
    assert float(loss) == 0
    np.testing.assert_array_equal(gradient, 0.0)


def test_a_negative_gamma_is_refused():
    with pytest.raises(ValueError, match="gamma is -1; it must be at least 0"):
        focal.focal_weights(jnp.ones(2), -1)


def test_examples_in_docstrings():
    assert doctest.testmod(focal).failed == 0
