import jax.numpy as jnp
import numpy as np
import pytest

from dual_encoder.objectives.enlarged import decoupled_info_nce, improved_info_nce
from dual_encoder.objectives.softmax import info_nce


def slow_improved(q, d, labels, where, relevant, temperature, weights):
    e = lambda x, y: np.exp(x @ y / temperature)
    total = 0.0
    for b, y in enumerate(labels):
        z = sum(e(q[b], d[n]) + (n != y and e(d[y], d[n])) for n in range(len(d)) if where[b, n])
        for c in range(len(q)):
            if not relevant[c, y]:
                z += e(q[c], d[y])
            if not relevant[c, y] and not relevant[b, labels[c]]:
                z += e(q[b], q[c])
        total -= weights[b] * np.log(e(q[b], d[y]) / z)
    return total / len(q)


def slow_decoupled(q, d, labels, where, temperature, weights):
    total = 0.0
    for b, y in enumerate(labels):
        z = sum(np.exp(q[b] @ d[n] / temperature) for n in range(len(d)) if where[b, n] and n != y)
        total += weights[b] * (np.log(z) - q[b] @ d[y] / temperature)
    return total / len(q)


@pytest.mark.parametrize(
    ("objective", "formula"), [(improved_info_nce, slow_improved), (decoupled_info_nce, slow_decoupled)]
)
def test_equals_the_formula(objective, formula, assert_follows):
    assert_follows(objective, formula)


@pytest.mark.slow
def test_more_negatives_cost_more_and_none_of_them_less(example, pick):
    q, d, given = example(2)
    plain, _ = info_nce(q, d, **pick(info_nce, given))
    assert improved_info_nce(q, d, **pick(improved_info_nce, given))[0] > plain
    assert decoupled_info_nce(q, d, **pick(decoupled_info_nce, given))[0] < plain


def test_without_negatives_the_decoupled_loss_is_none():
    q, arrays = (
        jnp.ones((1, 2)),
        dict(labels=jnp.array([0]), where=jnp.array([[True, False]]), temperature=1.0),
    )
    assert float(decoupled_info_nce(q, jnp.ones((2, 2)), **arrays)[0]) == 0
