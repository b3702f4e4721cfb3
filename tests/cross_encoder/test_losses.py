"""Losses of a cross-encoder beside slow transcriptions of their formulas."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cross_encoder import losses


def listed(rows, columns):
    """Scores of both signs, and which are there: the first always."""
    scores = arrays.arrays(np.float32, (rows, columns), elements=st.floats(-8, 8, width=16))
    where = arrays.arrays(np.bool_, (rows, columns)).map(
        lambda x: np.concatenate([np.ones((rows, 1), bool), x[:, 1:]], axis=1)
    )
    return st.tuples(scores, where)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@settings(max_examples=40, deadline=None)
@given(listed(3, 4))
def test_pointwise_is_the_mean_of_log_probabilities(given_arrays):
    scores, where = given_arrays
    found, metrics = losses.pointwise(jnp.asarray(scores), where=jnp.asarray(where))
    terms = []
    for row in range(3):
        for place in range(4):
            if where[row, place]:
                p = sigmoid(float(scores[row, place]))
                terms.append(-math.log(p if place == 0 else 1 - p))
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    first = [all(s[0] > s[h] for h in range(1, 4) if w[h]) for s, w in zip(scores, where, strict=True)]
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(first))


@settings(max_examples=40, deadline=None)
@given(listed(3, 4))
def test_localized_contrastive_is_a_softmax_over_a_querys_own_list(given_arrays):
    scores, where = given_arrays
    found, _ = losses.localized_contrastive(jnp.asarray(scores), where=jnp.asarray(where))
    terms = []
    for row in range(3):
        total = sum(math.exp(float(scores[row, h])) for h in range(4) if where[row, h])
        terms.append(math.log(total) - float(scores[row, 0]))
    assert float(found) == pytest.approx(sum(terms) / 3, rel=1e-5, abs=1e-6)


def test_a_tie_is_no_hit_and_a_query_alone_is_one():
    scores = jnp.zeros((2, 2))
    where = jnp.array([[True, True], [True, False]])
    for loss in (losses.pointwise, losses.localized_contrastive):
        assert float(loss(scores, where=where)[1]["accuracy"]) == 0.5


def test_scores_and_where_must_fit():
    with pytest.raises(AssertionError):
        losses.pointwise(jnp.zeros((2, 3)), where=jnp.ones((2, 2), bool))
