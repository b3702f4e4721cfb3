"""The bias selects and never weighs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import loss_free
from moe.experts import Dense
from moe.feed_forward import Context
from moe.group_limit import GroupLimit
from moe.groups import Tokens
from moe.loss_free import LossFree
from moe.mixture import Mixture
from moe.one_hot import OneHot

B, L, D, E, F = 2, 5, 6, 8, 4


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tokens(size):
    numbers = np.arange(size, dtype=np.int32)[None]
    return Tokens(valid=numbers >= 0, rows=np.zeros_like(numbers), positions=numbers)


def close(a, b):
    for ours, oracle in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        oracle = np.asarray(oracle)
        assert np.abs(np.asarray(ours) - oracle).max() <= 1e-5 * np.abs(oracle).max()


def test_by_hand():
    # Scores 0.8, 0.6, 0.5, 0.2; with the bias 0.8, 0.2, 0.5, 0.7: experts 0 and 3, weighted 0.8 and 0.2.
    scores = np.array([0.8, 0.6, 0.5, 0.2], np.float32)
    variables = {
        "params": {"score": {"kernel": np.log(scores / (1 - scores))[None]}},
        "balance": {"bias": np.array([0.0, -0.4, 0.0, 0.5], np.float32)},
    }
    run = lambda k=2, **fields: jax.jit(
        lambda: LossFree(4, k, **fields).apply(variables, np.ones((1, 1, 1)), tokens(1))
    )()
    assert run().expert.tolist() == [[0, 3]]
    close(run().weight, np.array([[0.8, 0.2]]))
    close(run(scaling=2.5).weight, np.array([[2.0, 0.5]]))
    three = run(3)
    assert three.expert.tolist() == [[0, 3, 2]]
    close(three.weight, np.array([[8, 2, 5]]) / 15)
    close(run(3, renormalize=False).weight, np.array([[0.8, 0.2, 0.5]]))
    close(run().probabilities, (scores / 2.1)[None, None])


@pytest.mark.parametrize(
    ("activation", "renormalize", "scaling", "limit"),
    [
        (jax.nn.softmax, False, 1.0, None),  # Wang et al., where they compare it with the sigmoid
        (jax.nn.sigmoid, True, 2.5, GroupLimit(4, 2, best=2)),  # DeepSeek-V3
    ],
)
def test_a_mixture_equals_plain_sums_in_value_and_gradient(drawn, activation, renormalize, scaling, limit):
    x = normal((B, L, D))
    context = Context(valid=np.ones((B, L), bool))
    router = LossFree(E, 3, activation=activation, renormalize=renormalize, scaling=scaling, limit=limit)
    mixture = Mixture(router, Dense(F), OneHot())
    variables = drawn(mixture, x, context, ())
    params = variables["params"]
    assert jax.tree.map(jnp.shape, variables["balance"]) == {"router": {"bias": (E,)}}
    bias = variables["balance"]["router"]["bias"]
    state = {"balance": variables["balance"]}

    biased = np.asarray(jax.jit(activation)(x @ params["router"]["score"]["kernel"])) + bias
    if limit is not None:
        two = np.sort(biased.reshape(B, L, 4, 2), -1).sum(-1)
        out = np.argsort(two, -1)[..., :2]  # the worst two groups
        mask = np.ones((B, L, 4), bool)
        np.put_along_axis(mask, out, False, -1)
        biased = np.where(np.repeat(mask, 2, -1), biased, -np.inf)
    chosen = np.argsort(-biased, -1)[..., :3]
    assert not np.array_equal(np.sort(chosen), np.sort(np.argsort(-(biased - bias), -1)[..., :3]))

    def oracle(params, x):
        score = activation(x @ params["router"]["score"]["kernel"]) * jax.nn.one_hot(chosen, E).sum(2)
        if renormalize:
            score = score / score.sum(-1, keepdims=True)
        hidden = jax.nn.gelu(jnp.einsum("bld,edf->blef", x, params["experts"]["in"]))
        return scaling * jnp.einsum("blef,efd,ble->bld", hidden, params["experts"]["out"], score)

    target = normal(x.shape, seed=3)
    mixed = lambda params, x: mixture.apply({"params": params, **state}, x, context, ())[0]

    def value_and_gradient(function):
        y, pull = jax.vjp(function, params, x)
        return y, pull(target)

    ours, theirs = jax.jit(lambda: (value_and_gradient(mixed), value_and_gradient(oracle)))()
    close(ours, theirs)


def test_a_replayed_routing_is_the_same_to_the_bit(drawn):
    x = normal((1, L, D))
    router = LossFree(E, 2)
    variables = drawn(router, x, tokens(L))
    run = jax.jit(lambda variables, replay=None: router.apply(variables, x, tokens(L), replay))
    first = run(variables)
    # The bias has moved since, and does not matter.
    moved = {**variables, "balance": {"bias": -variables["balance"]["bias"]}}
    again = run(moved, first.choice)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(run(moved).expert, first.expert)


def test_the_bias_starts_from_zero_and_has_no_gradient():
    x = normal((1, L, D))
    router = LossFree(E, 2)
    variables = jax.jit(router.init)(jax.random.key(1), x, tokens(L))
    params = variables["params"]
    assert variables["balance"]["bias"].tolist() == [0.0] * E
    weight = lambda bias: jnp.square(
        router.apply({"params": params, "balance": {"bias": bias}}, x, tokens(L)).weight
    ).sum()
    assert not jax.jit(jax.grad(weight))(jnp.zeros(E)).any()


def test_the_update_balances_the_load(drawn):
    """Tokens that all prefer the same experts are spread by the bias alone, layer by layer."""
    # Means 4 and 2; an expert that has the mean stays.
    count = jnp.array([[6.0, 4.0, 2.0], [0.0, 0.0, 6.0]])
    found = loss_free.update(jnp.ones((2, 3)), count, rate=0.25)
    assert found.tolist() == [[0.75, 1.0, 1.25], [1.25, 1.25, 0.75]]

    x = normal((1, 400, D)) + 1.0
    router = LossFree(E, 2)
    variables = drawn(router, x, tokens(400))

    @jax.jit
    def step(bias):
        routing = router.apply({**variables, "balance": {"bias": bias}}, x, tokens(400))
        count = jnp.bincount(routing.expert[0], length=E).astype(jnp.float32)
        return loss_free.update(bias, count, rate=0.01), count.max() / count.mean()

    bias = jnp.zeros(E)
    loads = []
    for _ in range(150):
        bias, load = step(bias)
        loads.append(float(load))
    assert loads[0] > 1.5
    assert max(loads[-10:]) < 1.2


def test_scores_are_float32_under_bfloat16(drawn):
    x = normal((1, L, D)).astype(jnp.bfloat16)
    router = LossFree(E, 2)
    variables = drawn(router, x, tokens(L))
    run = jax.jit(lambda x: router.apply(variables, x, tokens(L)))
    half, exact = run(x), run(x.astype(np.float32))
    assert half.logits.dtype == half.weight.dtype == jnp.float32
    np.testing.assert_array_equal(half.weight, exact.weight)


def test_k_is_one_to_all_experts():
    with pytest.raises(ValueError, match="k is 9; allowed: 1 to num_experts, 8"):
        LossFree(E, 9).init(jax.random.key(0), jnp.ones((1, 2, D)), tokens(2))


@pytest.mark.parametrize("logit", [-40.0, -50.0, -120.0])
def test_scores_that_vanish_have_finite_gradients(logit):
    """Weights are divided by their sum, which underflows first."""
    x = jnp.ones((1, 2, 1))
    router = LossFree(3, 2)

    def loss(kernel):
        variables = {"params": {"score": {"kernel": kernel}}, "balance": {"bias": jnp.zeros(3)}}
        routing = router.apply(variables, x, tokens(2))
        return (routing.weight * jnp.arange(4.0)[None]).sum() + (routing.probabilities**2).sum()

    assert jnp.isfinite(jax.grad(loss)(jnp.full((1, 3), logit))).all()


@pytest.mark.parametrize("experts", [7, 28, 60])
def test_an_expert_at_the_mean_stays(experts):
    """Also under jit, where XLA would make a mean a product with 1 / E."""
    count = jnp.full(experts, 1234.0).at[0].add(5).at[1].add(-5)
    moved = jax.jit(lambda count: loss_free.update(jnp.zeros(experts), count, rate=1.0))(count)
    assert moved.tolist() == [-1.0, 1.0, *[0.0] * (experts - 2)]
