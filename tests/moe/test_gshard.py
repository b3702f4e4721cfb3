"""GShard's second expert is kept as often as its weight says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.groups import Tokens
from moe.gshard import GShard

S, E = 20000, 3


def routing(train, replay=None):
    """Logits are log 6, log 3, log 1: probabilities 0.6, 0.3, 0.1, so g1 = 2/3 and g2 = 1/3."""
    numbers = np.arange(S, dtype=np.int32)[None]
    tokens = Tokens(valid=numbers >= 0, rows=np.zeros_like(numbers), positions=numbers, train=train)
    params = {"params": {"score": {"kernel": np.log(np.array([[6.0, 3.0, 1.0]]))}}}
    rngs = {"router": jax.random.key(0)}
    return jax.jit(lambda replay: GShard(E).apply(params, np.ones((1, S, 1)), tokens, replay, rngs=rngs))(
        replay
    )


def test_the_second_is_kept_with_twice_its_weight():
    found = routing(train=True)
    keep = np.asarray(found.keep).reshape(S, 2)
    assert keep[:, 0].all()
    np.testing.assert_allclose(keep[:, 1].mean(), 2 / 3, atol=0.015)  # 4 standard deviations
    np.testing.assert_allclose(np.asarray(found.weight)[0, :2], [2 / 3, 1 / 3], rtol=1e-6)
    assert np.asarray(found.expert)[0, :2].tolist() == [0, 1]


def test_all_are_kept_in_evaluation():
    assert routing(train=False).keep.all()


def test_replay_keeps_what_was_kept():
    first = routing(train=True)
    again = routing(train=True, replay=first.choice)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    other = ~np.asarray(first.keep)
    np.testing.assert_array_equal(routing(True, first.choice.replace(keep=other)).keep, other)


def test_two_experts_at_least():
    numbers = jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(ValueError, match="k is 2; allowed: 1 to num_experts, 1"):
        GShard(1).init(jax.random.key(0), jnp.ones((1, 2, 4)), Tokens(numbers == 0, numbers, numbers))
