"""Losses of learning to rank by hand, what NaN means, and that a batch's scores are as good as a list's."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training import ranking
from training.ranking import kl, list_net, margin_mse, rank_net

LOSSES = [list_net, kl, margin_mse, rank_net]


def test_list_net_by_hand():
    student = jnp.log(jnp.array([[0.2, 0.6, 0.2], [0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]))
    teacher = 2 * jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.5, 0.5, 7.0], [1.0, 1.0, 1.0]]))
    where = jnp.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], bool)  # the last query has one candidate
    first = -(0.5 * np.log(0.2) + 0.25 * np.log(0.6) + 0.25 * np.log(0.2))
    second = -(0.5 * np.log(2 / 3) + 0.5 * np.log(1 / 3))
    found = list_net(student, teacher, where=where, temperature=2.0)
    np.testing.assert_allclose(found, (first + second) / 2, rtol=1e-6)


def test_rank_net_by_hand():
    student = jnp.array([[0.0, 1.0, 3.0], [1.0, 0.0, 5.0]])
    teacher = jnp.array([[3.0, 2.0, 2.0], [0.0, 1.0, 9.0]])  # a tie, and a candidate that is not there
    where = jnp.array([[1, 1, 1], [1, 1, 0]], bool)
    softplus = lambda x: np.log1p(np.exp(x))
    expected = ((softplus(1.0) + softplus(3.0)) / 2 + softplus(1.0)) / 2
    np.testing.assert_allclose(rank_net(student, teacher, where=where), expected, rtol=1e-6)


@pytest.mark.parametrize("objective", LOSSES)
def test_what_is_not_there_has_no_gradient(objective):
    student, teacher = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, 0.0]]), jnp.array([[3.0, 1.0, 2.0]] * 2)
    where = jnp.array([[1, 1, 0], [0, 0, 0]], bool)
    gradient = np.asarray(jax.grad(lambda s: objective(s, teacher, where=where))(student))
    assert np.isfinite(gradient).all()
    assert (gradient[~np.asarray(where)] == 0).all()
    assert gradient[0, 0] < 0 < gradient[0, 1]  # towards the teacher's order
    assert objective(student, teacher, where=jnp.zeros_like(where)) == 0


def test_kl_is_list_net_without_the_entropy_of_the_teacher():
    student, teacher = jnp.array([[1.0, 2.0, 0.5]]), jnp.array([[3.0, 1.0, jnp.nan]])
    where, p = jnp.ones((1, 3), bool), np.exp([3.0, 1.0]) / np.exp([3.0, 1.0]).sum()
    entropy = -(p * np.log(p)).sum()
    found = list_net(student, teacher, where=where) - kl(student, teacher, where=where)
    np.testing.assert_allclose(found, entropy, rtol=1e-6)
    gradients = [jax.grad(lambda s, of=of: of(s, teacher, where=where))(student) for of in (kl, list_net)]
    np.testing.assert_allclose(*gradients, atol=1e-7)


def test_margin_mse_of_a_batch_has_each_querys_own_column():
    student, teacher = jnp.array([[3.0, 1.0], [4.0, 2.0]]), jnp.array([[5.0, 4.0], [1.0, 3.0]])
    found = margin_mse(student, teacher, where=jnp.ones((2, 2), bool), labels=jnp.array([0, 1]))
    np.testing.assert_allclose(found, ((2 - 1) ** 2 + (-2 - 2) ** 2) / 2)


def test_a_query_whose_own_has_no_score_has_no_margin():
    student, teacher = jnp.array([[3.0, 1.0], [4.0, 2.0]]), jnp.array([[jnp.nan, 4.0], [1.0, 3.0]])
    found = margin_mse(student, teacher, where=jnp.ones((2, 2), bool))
    np.testing.assert_allclose(found, (2 + 2) ** 2)


@pytest.mark.parametrize("objective", LOSSES)
def test_no_score_is_as_good_as_not_there(objective):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 4)).astype(np.float32)
    where = rng.random((5, 4)) < 0.7
    missing = np.where(where, teacher, np.nan)
    value = jax.jit(jax.value_and_grad(lambda s, t, where: objective(s, t, where=where), argnums=(0, 1)))
    left_out, of_left_out = value(student, teacher, where)
    unknown, of_unknown = value(student, missing, np.ones_like(where))
    assert float(unknown) == float(left_out) > 0
    np.testing.assert_array_equal(of_unknown[0], of_left_out[0])
    assert (np.asarray(of_unknown[0])[~where] == 0).all()
    assert np.isfinite(of_unknown[0]).all()
    np.testing.assert_array_equal(of_left_out[1], 0)  # the teacher learns nothing


@pytest.mark.parametrize("objective", LOSSES)
def test_weights_weigh_queries(objective):
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(2, 3, 4)).astype(np.float32)
    where = np.ones((3, 4), bool)
    each = [objective(student[b : b + 1], teacher[b : b + 1], where=where[:1]) for b in range(3)]
    weights = np.array([0.5, 2.0, 0.5], np.float32)
    found = objective(student, teacher, where=where, weights=weights)
    np.testing.assert_allclose(found, np.dot(weights, each) / 3, rtol=1e-5)


@pytest.mark.parametrize("objective", [kl, margin_mse])
def test_a_student_that_agrees_up_to_a_constant_has_no_loss(objective):
    teacher = jnp.array([[3.0, 1.0, 2.0]])
    value = functools.partial(objective, where=jnp.ones((1, 3), bool))
    assert float(value(teacher + 7, teacher)) == pytest.approx(0, abs=1e-5)
    assert float(value(2 * teacher, teacher)) > 0.01


def test_examples_in_docstrings():
    assert doctest.testmod(ranking).failed == 0
