import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from dual_encoder.candidates import candidates
from dual_encoder.objectives import softmax
from dual_encoder.objectives.softmax import info_nce, symmetric_info_nce


def slow_info_nce(q, d, labels, where, temperature):
    """The formula, query by query, in float64."""
    losses, correct = [], []
    for i, y in enumerate(labels):
        scores = {n: np.dot(q[i], d[n]) / temperature for n in range(len(d)) if where[i, n]}
        losses.append(np.log(sum(np.exp(s) for s in scores.values())) - scores[y])
        correct.append(all(scores[y] > s for n, s in scores.items() if n != y))
    return np.mean(losses), np.mean(correct)


def example(seed=0, queries=5, documents=10, width=4):
    rng = np.random.default_rng(seed)
    q, d = rng.normal(size=(queries, width)), rng.normal(size=(documents, width))
    labels = rng.permutation(documents)[:queries]
    where = rng.random((queries, documents)) < 0.7
    where[np.arange(queries), labels] = True
    return q.astype(np.float32), d.astype(np.float32), labels.astype(np.int32), where


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 5.0))
@settings(max_examples=30, deadline=None)
def test_info_nce_equals_the_formula(seed, temperature):
    q, d, labels, where = example(seed)
    loss, metrics = info_nce(q, d, labels=labels, where=where, temperature=temperature)
    expected, accuracy = slow_info_nce(q.astype(np.float64), d.astype(np.float64), labels, where, temperature)
    assert float(loss) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(accuracy)


def test_symmetric_adds_the_direction_from_documents_to_queries():
    q, d, labels, where = example(1)
    loss, _ = symmetric_info_nce(q, d, labels=labels, where=where, temperature=0.5)
    forward, _ = slow_info_nce(q, d, labels, where, 0.5)
    backward, _ = slow_info_nce(d[labels], q, np.arange(len(q)), where[:, labels].T, 0.5)
    assert float(loss) == pytest.approx((forward + backward) / 2, rel=1e-5)


def test_by_hand():
    # One query, its document and one negative: scores 1 and 0, t = 1/2: log(1 + exp(-2)) = 0.126928.
    q, d = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    loss, _ = info_nce(q, d, labels=jnp.array([0]), where=jnp.ones((1, 2), bool), temperature=0.5)
    assert float(loss) == pytest.approx(0.126928, abs=1e-6)


@pytest.mark.parametrize("objective", [info_nce, symmetric_info_nce])
def test_gradients_equal_finite_differences(objective):
    with jax.enable_x64():
        q, d, labels, where = example(2)
        q, d = jnp.asarray(q, jnp.float64), jnp.asarray(d, jnp.float64)

        def loss(q, d):
            return objective(q, d, labels=labels, where=where, temperature=0.3)[0]

        check_grads(loss, (q, d), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective", [info_nce, symmetric_info_nce])
def test_what_is_masked_gets_no_gradient(objective):
    q, d, labels, where = example(3)
    outside = next(n for n in range(len(d)) if n not in labels)
    where[:, outside] = False
    grad = jax.grad(lambda d: objective(q, d, labels=labels, where=where, temperature=0.3)[0])(d)
    np.testing.assert_array_equal(grad[outside], 0.0)
    assert np.isfinite(grad).all()
    assert np.abs(grad[labels]).max() > 0


def test_candidates_mask_every_known_positive_but_ones_own():
    # Query 0 has relevant documents 7 and 9, query 1 has 9 only. The batch holds 7, 4 | 9, none.
    where = candidates(jnp.array([[7, 9], [9, -1]]), jnp.array([7, 4, 9, -1]), jnp.array([0, 2]))
    np.testing.assert_array_equal(where, [[True, True, False, False], [True, True, True, False]])


def test_the_same_document_twice_is_masked_as_a_negative():
    where = candidates(jnp.array([[3], [3]]), jnp.array([3, 3]), jnp.array([0, 1]))
    np.testing.assert_array_equal(where, np.eye(2, dtype=bool))


def test_examples_in_docstrings():
    assert doctest.testmod(softmax).failed == 0


def test_shapes_that_do_not_fit_are_refused():
    q, d, labels, where = example()
    with pytest.raises(AssertionError):
        info_nce(q, d[:, :3], labels=labels, where=where, temperature=1.0)
    with pytest.raises(AssertionError):
        info_nce(q, d, labels=labels, where=where.T, temperature=1.0)


def test_vectors_that_are_all_the_same_are_not_accurate():
    same = jnp.ones((4, 3))
    _, metrics = info_nce(same, same, labels=jnp.arange(4), where=jnp.ones((4, 4), bool), temperature=1.0)
    assert float(metrics["accuracy"]) == 0.0
