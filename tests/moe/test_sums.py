"""The sums of a layer, counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from moe.groups import Tokens
from moe.routing import Routing, token_choice
from moe.sums import sums


def tokens(valid):
    valid = jnp.asarray(valid)
    return Tokens(valid=valid, rows=valid * 0, positions=valid * 0)


def test_sums_are_counted_by_sequence():
    """One group of two sequences of two tokens; the last token is padding."""
    expert = jnp.array([[[0, 1], [0, 2], [1, 2], [0, 1]]])
    weight = jnp.array([[[0.6, 0.4], [0.7, 0.3], [0.9, 0.1], [0.5, 0.5]]])
    keep = jnp.array([[[True], [True], [True], [False]]])
    probability = jnp.array([[[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]]])
    logits = jnp.log(jnp.array([[[1.0, 1.0, 1.0], [1.0, 1.0, 2.0], [2.0, 2.0, 1.0], [9.0, 9.0, 9.0]]]))
    routing = token_choice(expert, weight, keep, 3, logits=logits, probabilities=probability)
    served = jnp.array([[True, True, False, True, True, True, False, False]])
    valid = tokens([[True, True, True, False]])
    found = jax.jit(sums, static_argnums=3)(routing, served, valid, 2)
    assert found["count"].tolist() == [[2, 1, 1], [0, 1, 1]]
    assert found["served"].tolist() == [[1, 1, 1], [0, 1, 1]]
    np.testing.assert_allclose(found["weight"], [[1.3, 0.4, 0.3], [0.0, 0.9, 0.1]], rtol=1e-6)
    assert found["tokens"].tolist() == [2, 1]
    assert found["dropped"].tolist() == [1, 0]
    np.testing.assert_allclose(found["probability"], [[1.5, 0.25, 0.25], [0.2, 0.8, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(found["z"], [np.log(3) ** 2 + np.log(4) ** 2, np.log(5) ** 2], rtol=1e-6)
    expected = [1.5 * np.log(2), -0.2 * np.log(0.2) - 0.8 * np.log(0.8)]
    np.testing.assert_allclose(found["entropy"], expected, rtol=1e-6)
    entropy = lambda p: sums(routing.replace(probabilities=p), served, valid, 2)["entropy"].sum()
    assert np.isfinite(jax.jit(jax.grad(entropy))(probability)).all()  # with zeros


def test_where_experts_choose_an_edge_counts_for_the_sequence_of_its_token():
    routing = Routing(
        token=jnp.array([[0, 3, 2, 3]]),
        expert=jnp.array([[0, 0, 1, 1]]),
        weight=jnp.array([[0.1, 0.2, 0.3, 0.4]]),
        keep=jnp.array([[True, True, False, True]]),
        logits=None,
        probabilities=None,
        num_experts=2,
        num_tokens=4,
    )
    found = jax.jit(sums, static_argnums=3)(routing, routing.keep, tokens([[True] * 4]), 2)
    assert found["count"].tolist() == [[1, 0], [1, 1]]
    np.testing.assert_allclose(found["weight"], [[0.1, 0.0], [0.2, 0.4]], rtol=1e-6)
    assert "probability" not in found
