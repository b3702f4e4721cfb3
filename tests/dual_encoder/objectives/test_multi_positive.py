import doctest

import jax.numpy as jnp
import numpy as np
import pytest

from dual_encoder.objectives import multi_positive
from dual_encoder.objectives.multi_positive import one_to_k
from dual_encoder.objectives.softmax import symmetric_info_nce


def slow_one_to_k(q, d, labels, where, relevant, temperature, weights):
    scores, total = q @ d.T / temperature, 0.0
    for b in range(len(q)):
        own = [n for n in range(len(d)) if relevant[b, n]]
        counted = [n for n in range(len(d)) if where[b, n] or relevant[b, n]]
        for k in own:
            forward = -np.log(np.exp(scores[b, k]) / sum(np.exp(scores[b, n]) for n in counted))
            queries = [b, *(c for c in range(len(q)) if not relevant[c, k])]
            backward = -np.log(np.exp(scores[b, k]) / sum(np.exp(scores[c, k]) for c in queries))
            total += weights[b] * (forward + backward) / 2 / len(own)
    return total / len(q)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_equals_the_formula(seed, assert_follows):
    assert_follows(one_to_k, slow_one_to_k, seed)


@pytest.mark.slow
def test_with_one_positive_and_no_listed_negatives_it_is_symmetric_info_nce(example, pick):
    q, d, given = example(listed=1)
    own = jnp.eye(4, dtype=bool)
    given = {**given, "relevant": own, "where": jnp.ones((4, 4), bool)}
    found, metrics = one_to_k(q, d, **pick(one_to_k, given))
    expected, _ = symmetric_info_nce(q, d, **pick(symmetric_info_nce, given))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert float(metrics["positives"]) == 1


def test_positives_of_equal_weight_are_pulled_alike():
    # Two positives at the same score and one negative: -log(e / (2 e + 1)) for each; no other query backward.
    q, d = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    relevant = jnp.array([[True, True, False]])
    loss, _ = one_to_k(
        q,
        d,
        labels=jnp.array([0]),
        where=jnp.array([[True, False, True]]),
        relevant=relevant,
        temperature=1.0,
    )
    assert float(loss) == pytest.approx(-np.log(np.e / (2 * np.e + 1)) / 2)


def test_examples_in_docstrings():
    assert doctest.testmod(multi_positive).failed == 0
