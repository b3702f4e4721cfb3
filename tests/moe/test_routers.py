"""Scored token choice against loops over tokens: what is chosen, with what weight, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import noise
from moe.experts import Dense
from moe.feed_forward import Context
from moe.group_limit import GroupLimit
from moe.groups import Tokens
from moe.mixture import Mixture
from moe.one_hot import OneHot
from moe.routers import TopK, weigh
from training.build import build

B, L, D, E, F = 2, 5, 6, 8, 4


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs():
    valid = np.ones((B, L), bool)
    valid[1, 3:] = False
    return normal((B, L, D)), Context(valid=valid)


def tokens(size, train=False):
    numbers = np.arange(size, dtype=np.int32)[None]
    return Tokens(valid=numbers >= 0, rows=np.zeros_like(numbers), positions=numbers, train=train)


def close(a, b):
    for ours, oracle in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        oracle = np.asarray(oracle)
        assert np.abs(np.asarray(ours) - oracle).max() <= 1e-5 * np.abs(oracle).max()


def chosen(score, k, limit):
    """The best k of one token, in order; with a limit, of its best groups."""
    left = list(range(E))
    if limit is not None:
        size = E // limit.num_groups
        groups = [range(n * size, (n + 1) * size) for n in range(limit.num_groups)]
        groups.sort(key=lambda g: -sum(sorted(score[list(g)])[-limit.best :]))
        left = [e for g in groups[: limit.topk_groups] for e in g]
    return sorted(left, key=lambda e: -score[e])[:k]


def oracle(params, x_BLD, choices_BLK, valid_BL, renormalize, scaling):
    """Plain sums over experts; the choice is given, so that it has a gradient."""
    logits = x_BLD @ params["router"]["score"]["kernel"]
    probability = jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)
    on = jax.nn.one_hot(choices_BLK, E).sum(2) * valid_BL[..., None]
    weight = probability * on
    if renormalize:
        weight = weight / jnp.where(valid_BL[..., None], weight.sum(-1, keepdims=True), 1.0)
    hidden = jax.nn.gelu(jnp.einsum("bld,edf->blef", x_BLD, params["experts"]["in"]))
    return scaling * jnp.einsum("blef,efd,ble->bld", hidden, params["experts"]["out"], weight)


@pytest.mark.parametrize(
    ("k", "renormalize", "scaling", "limit"),
    [
        (1, False, 1.0, None),  # Switch
        (3, False, 16.0, GroupLimit(4, 2)),  # DeepSeek-V2
        (2, True, 2.0, GroupLimit(2, 1, best=2)),
    ],
)
def test_a_mixture_equals_a_loop_in_value_and_gradient(drawn, k, renormalize, scaling, limit):
    x, context = inputs()
    router = TopK(E, k, renormalize=renormalize, scaling=scaling, limit=limit)
    mixture = Mixture(router, Dense(F), OneHot())
    params = drawn(mixture, x, context, ())["params"]
    logits = np.asarray(x @ params["router"]["score"]["kernel"])
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    choices = np.array([[chosen(score, k, limit) for score in row] for row in probability])
    target = normal(x.shape, seed=2)

    ours = lambda params, x: mixture.apply({"params": params}, x, context, ())[0]
    theirs = lambda params, x: oracle(params, x, choices, context.valid, renormalize, scaling)

    def value_and_gradient(function):
        y, pull = jax.vjp(function, params, x)
        return y, pull(target)

    ours, theirs = jax.jit(lambda: (value_and_gradient(ours), value_and_gradient(theirs)))()
    close(ours, theirs)


def test_weights_by_hand():
    # Scores 0.1, 0.2, 0.3, 0.4; the best two sum to 0.7.
    score = jnp.array([[[0.1, 0.2, 0.3, 0.4]]])
    expert = jnp.array([[[3, 2]]])
    close(weigh(score, expert, renormalize=False), np.array([[[0.4, 0.3]]]))
    close(weigh(score, expert, renormalize=True), np.array([[[4 / 7, 3 / 7]]]))
    close(weigh(score, expert, renormalize=True, scaling=7.0), np.array([[[4.0, 3.0]]]))


def test_weights_of_vanished_scores_are_finite():
    weight = weigh(jnp.array([[[0.0, 0.0, 1.0]]]), jnp.array([[[0, 1]]]), renormalize=True)
    assert weight.tolist() == [[[0.0, 0.0]]]


def test_the_first_of_equal_experts_is_chosen():
    router = TopK(3, 2)
    params = {"params": {"score": {"kernel": np.zeros((D, 3))}}}
    routing = jax.jit(lambda: router.apply(params, np.ones((1, 2, D)), tokens(2)))()
    assert routing.expert.tolist() == [[0, 1, 0, 1]]
    assert routing.weight.tolist() == [[0.5] * 4]


def test_a_replayed_routing_is_the_same_to_the_bit(drawn):
    router = TopK(E, 2, noise=noise.Normal(8.0), limit=GroupLimit(4, 2))
    x = normal((1, 6, D))
    rngs = {"router": jax.random.key(7)}
    params = drawn(router, x, tokens(6))
    run = jax.jit(lambda replay: router.apply(params, x, tokens(6, train=True), replay, rngs=rngs))
    first = run(None)
    again = run(first.choice)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    other = first.choice.replace(expert=(first.expert + 1) % E)
    moved = run(other)
    np.testing.assert_array_equal(moved.expert, other.expert)
    assert not np.array_equal(moved.weight, first.weight)


def test_logits_are_float32_and_without_noise(drawn):
    x = normal((1, 6, D)).astype(jnp.bfloat16)
    noisy = TopK(E, 2, noise=noise.Normal(8.0))
    params = drawn(noisy, x, tokens(6))
    plain = jax.jit(lambda: TopK(E, 2).apply(params, x, tokens(6)))()
    rngs = {"router": jax.random.key(2)}
    found = jax.jit(lambda: noisy.apply(params, x, tokens(6, train=True), rngs=rngs))()
    assert found.logits.dtype == found.weight.dtype == jnp.float32
    np.testing.assert_array_equal(found.logits, plain.logits)
    np.testing.assert_array_equal(found.probabilities, plain.probabilities)
    assert not np.array_equal(found.weight, plain.weight)
    close(found.logits, x.astype(np.float32) @ params["params"]["score"]["kernel"])


@pytest.mark.parametrize("k", [0, 9])
def test_k_is_one_to_all_experts(k):
    with pytest.raises(ValueError, match=f"k is {k}; allowed: 1 to num_experts, 8"):
        TopK(E, k).init(jax.random.key(0), jnp.ones((1, 2, D)), tokens(2))


def test_a_config_names_each_part():
    spec = dict(
        name="moe.routers.TopK",
        num_experts=E,
        k=2,
        noise=dict(name="moe.noise.Learned"),
        limit=dict(name="moe.group_limit.GroupLimit", num_groups=4, topk_groups=2),
        kernel_init=dict(name="flax.linen.initializers.zeros_init"),
    )
    params = jax.jit(build(spec).init)(jax.random.key(0), jnp.ones((1, 2, D)), tokens(2))["params"]
    assert jax.tree.map(jnp.shape, params) == {
        "score": {"kernel": (D, E)},
        "noise": {"scale": {"kernel": (D, E)}},
    }
    assert not params["score"]["kernel"].any()
