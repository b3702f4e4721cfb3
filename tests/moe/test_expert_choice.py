"""Experts choose tokens: against a loop over experts, with padding, ties and a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.expert_choice import ExpertChoice, at_random
from moe.experts import Dense
from moe.feed_forward import Context
from moe.groups import Tokens
from moe.mixture import Mixture
from moe.one_hot import OneHot
from training.build import build

B, L, D, E, F = 2, 6, 5, 4, 3


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def group(valid, train=False):
    valid = np.asarray(valid)[None]
    numbers = np.arange(valid.shape[1], dtype=np.int32)[None]
    return Tokens(valid=valid, rows=np.zeros_like(numbers), positions=numbers, train=train)


def close(a, b):
    for ours, oracle in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        oracle = np.asarray(oracle)
        assert np.abs(np.asarray(ours) - oracle).max() <= 1e-5 * np.abs(oracle).max()


@pytest.mark.parametrize("group_rows", [1, None])
def test_a_mixture_equals_a_loop_in_value_and_gradient(drawn, group_rows):
    # C = ceil(1.5 * 6 / 4) = 3 of a group, whatever its size; the second sequence has two tokens.
    valid = np.ones((B, L), bool)
    valid[1, 2:] = False
    x = normal((B, L, D))
    context = Context(valid=valid)
    mixture = Mixture(ExpertChoice(E, tokens=L, factor=1.5), Dense(F), OneHot(), group_rows=group_rows)
    params = drawn(mixture, x, context, ())["params"]
    target = normal(x.shape, seed=2)

    def probability(params, x):
        logits = x @ params["router"]["score"]["kernel"]
        return jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)

    score = np.asarray(jax.jit(probability)(params, x)).reshape(-1, E)
    on = np.zeros((B * L, E), np.float32)
    size = L if group_rows == 1 else B * L
    for first in range(0, B * L, size):
        real = [s for s in range(first, first + size) if valid.reshape(-1)[s]]
        for e in range(E):
            for s in sorted(real, key=lambda s: -score[s, e])[:3]:
                on[s, e] = 1
    assert on.sum() == (E * 3 + E * 2 if group_rows == 1 else E * 3)
    on = on.reshape(B, L, E)

    def oracle(params, x):
        hidden = jax.nn.gelu(jnp.einsum("bld,edf->blef", x, params["experts"]["in"]))
        weight = probability(params, x) * on
        return jnp.einsum("blef,efd,ble->bld", hidden, params["experts"]["out"], weight)

    @jax.jit
    def run():
        y, pull, aux = jax.vjp(
            lambda params, x: mixture.apply({"params": params}, x, context, ())[::2], params, x, has_aux=True
        )
        expected, pull_expected = jax.vjp(oracle, params, x)
        return (y, pull(target)), (expected, pull_expected(target)), aux

    ours, theirs, aux = run()
    close(ours, theirs)
    np.testing.assert_array_equal(aux["count"], on.sum(1))
    assert not aux["dropped"].any()


@pytest.fixture
def routing(drawn):
    def run(router, x, valid, train=False, replay=None, rngs=None):
        tokens = group(valid, train)
        params = drawn(router, x, tokens)
        return jax.jit(lambda: router.apply(params, x, tokens, replay, rngs=rngs))()

    return run


def test_ties_go_to_the_first_tokens(routing):
    found = routing(ExpertChoice(2, tokens=4, factor=1.0), np.ones((1, 6, D)), [False] + [True] * 5)
    assert found.token.tolist() == [[1, 2, 1, 2]]
    assert found.expert.tolist() == [[0, 0, 1, 1]]
    assert np.asarray(found.keep).all()


def test_random_ties_among_equal_tokens_alone():
    """Two tokens stand out, one is padding, and of the equal rest each is taken about as often."""
    draws, length = 256, 16  # each draw is a group of its own, of nine tokens
    best = np.zeros((length, 2), np.float32)
    best[4, 0] = best[7, 1] = 5
    numbers = np.arange(length, dtype=np.int32)
    shape = (draws, length)
    tokens = Tokens(
        valid=np.broadcast_to((numbers < 10) & (numbers != 2), shape),
        rows=np.broadcast_to(np.arange(draws, dtype=np.int32)[:, None], shape),
        positions=np.broadcast_to(numbers, shape),
    )
    router = ExpertChoice(2, tokens=6, factor=1.0, tie=at_random)
    params = {"params": {"score": {"kernel": np.eye(2, dtype=np.float32)}}}
    x = np.broadcast_to(best, (*shape, 2))
    run = jax.jit(lambda: router.apply(params, x, tokens, rngs={"router": jax.random.key(0)}).token)
    found = np.asarray(run()).reshape(draws, 2, 3)
    assert (found[:, 0, 0] == 4).all()
    assert (found[:, 1, 0] == 7).all()
    # For expert 0 seven tokens are equal, and token 7 is worse: two places of seven, 73 of 256 draws each.
    rest = np.bincount(found[:, 0, 1:].ravel(), minlength=10)
    assert len(rest) == 10
    assert rest[[2, 4, 7]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(np.delete(rest, [2, 4, 7]), 73, atol=29)  # 4 standard deviations
    assert not np.array_equal(found[:, 0, 1:], found[:, 1, 1:])


def test_random_ties_need_a_stream_in_evaluation_too(routing):
    router = ExpertChoice(2, tokens=4, tie=at_random)
    with pytest.raises(ValueError, match="tie is random and there is no stream 'router'; allowed: rngs="):
        routing(router, np.ones((1, 6, D)), [True] * 6)


def test_padding_takes_no_place(routing):
    x = normal((1, 6, D))
    found = routing(ExpertChoice(2, tokens=8, factor=1.0), x, [True, False, True, False, False, False])
    token, keep = (np.asarray(v)[0].reshape(2, 4) for v in (found.token, found.keep))
    assert keep.tolist() == [[True, True, False, False]] * 2
    assert [sorted(row[:2]) for row in token.tolist()] == [[0, 2]] * 2


@pytest.mark.parametrize(
    ("train", "length", "slots"),
    [(True, 12, 6), (False, 12, 3), (True, 4, 4)],  # at most as many as there are tokens
)
def test_evaluation_has_a_capacity_of_its_own(train, length, slots):
    router = ExpertChoice(2, tokens=6, factor=2.0, evaluation_factor=1.0)
    shape = jax.eval_shape(
        lambda: (
            router.init_with_output(
                jax.random.key(0), jnp.ones((1, length, D)), group([True] * length, train)
            )[0].token
        )
    )
    assert shape.shape == (1, 2 * slots)


def test_a_replayed_routing_is_the_same_to_the_bit(routing):
    x = normal((1, 6, D))
    router = ExpertChoice(E, tokens=6)
    first = routing(router, x, [True] * 5 + [False])
    again = routing(router, x, [True] * 5 + [False], replay=first.choice)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    moved = routing(router, x, [True] * 6, replay=first.choice.replace(token=(first.token + 1) % 6))
    token, expert = np.asarray(moved.token[0]), np.asarray(moved.expert[0])
    np.testing.assert_array_equal(moved.weight[0], np.asarray(moved.probabilities)[0, token, expert])
    assert not np.array_equal(moved.weight, first.weight)


def test_scores_are_float32_under_bfloat16(routing):
    x = normal((1, 6, D)).astype(jnp.bfloat16)
    half = routing(ExpertChoice(E, tokens=6), x, [True] * 6)
    exact = routing(ExpertChoice(E, tokens=6), x.astype(jnp.float32), [True] * 6)
    assert half.logits.dtype == half.weight.dtype == jnp.float32
    np.testing.assert_array_equal(half.token, exact.token)
    np.testing.assert_array_equal(half.weight, exact.weight)


@pytest.mark.parametrize("field", ["factor", "tokens", "evaluation_factor"])
def test_what_is_not_positive_is_refused(field):
    router = ExpertChoice(**{**dict(num_experts=2, tokens=4), field: 0})
    with pytest.raises(ValueError, match=f"{field} is 0; allowed: a positive number"):
        jax.eval_shape(router.init, jax.random.key(0), np.ones((1, 4, D)), group([True] * 4))


def test_a_config_names_the_tie(routing):
    router = build(
        dict(
            name="moe.expert_choice.ExpertChoice",
            num_experts=2,
            tokens=4,
            tie=dict(name="moe.expert_choice.at_random"),
        )
    )
    assert routing(router, np.ones((1, 4, D)), [True] * 4, rngs={"router": jax.random.key(0)}).keep.all()
