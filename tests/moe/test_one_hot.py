"""The oracle, worked by hand."""

import jax.numpy as jnp
import numpy as np

from moe.capacity import Capacity
from moe.one_hot import OneHot
from moe.routing import Routing, token_choice


def test_tokens_go_to_places_and_come_back_weighted():
    """Two tokens, two experts, one place each: token 1 finds expert 0 taken."""
    routing = token_choice(
        jnp.array([[[0, 1], [0, 1]]]), jnp.array([[[0.75, 0.25], [0.5, 0.5]]]), jnp.ones((1, 1, 1), bool), 2
    )
    routing = routing.replace(keep=jnp.array([[True, False, True, True]]))
    plan = OneHot(Capacity(factor=0.5, tokens=2)).plan(routing, train=True)
    assert plan.keep.tolist() == [[True, False, False, True]]
    x = jnp.array([[[1.0, 2.0], [10.0, 20.0]]])
    rows = plan.dispatch(x)
    assert rows.values.tolist() == [[[[1.0, 2.0]], [[10.0, 20.0]]]]
    w_EDF = jnp.array([[[1.0], [0.0]], [[0.0], [1.0]]])  # expert 0 takes the first number, 1 the second
    y = plan.combine(rows.matmul(w_EDF).add(jnp.array([[100.0], [0.0]])))
    np.testing.assert_allclose(y, [[[0.75 * 101], [0.5 * 20]]])


def test_edges_in_any_order():
    """Experts that choose: expert 1 has token 0 twice, as no token choice could."""
    routing = Routing(
        token=jnp.array([[1, 0, 0, 0]]), expert=jnp.array([[0, 0, 1, 1]]),
        weight=jnp.array([[2.0, 3.0, 5.0, 7.0]]), keep=jnp.array([[True, False, True, True]]),
        logits=None, probabilities=None, num_experts=2, num_tokens=2,
    )  # fmt: skip
    plan = OneHot(Capacity(factor=1.0, tokens=2)).plan(routing, train=True)
    x = jnp.array([[[1.0], [10.0]]])
    assert plan.dispatch(x).values[..., 0].tolist() == [[[10.0, 0.0], [1.0, 1.0]]]
    assert plan.combine(plan.dispatch(x)).tolist() == [[[12.0], [20.0]]]
