"""Noise belongs to tokens: its size, and that nothing but row and position changes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moe import groups, noise
from moe.expert_choice import ExpertChoice, at_random
from moe.feed_forward import Context
from moe.groups import Tokens
from moe.gshard import GShard
from moe.routers import TopK

B, L, D, E = 8, 8, 4, 6


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


ROUTERS = {
    "learned": TopK(E, 2, jitter=0.2, noise=noise.Learned()),
    "normal": TopK(E, 2, noise=noise.Normal(E)),
    "gshard": GShard(E),
}
X = normal((B, L, D), seed=1)


class All(nn.Module):
    """Every router, so that one program is compiled for them all."""

    def setup(self):
        self.routers = ROUTERS

    def __call__(self, x_GSD, tokens):
        return {name: router(x_GSD, tokens) for name, router in self.routers.items()}


@pytest.fixture(scope="module")
def params(drawn):
    return drawn(All(), *groups.group(X, Context(valid=np.ones((B, L), bool)), 1))


def route(params, x_BLD=X, *, group_rows=1, train=True):
    """Returns a function of a seed: router -> (expert, weight, keep), each [B, L, K]."""

    @jax.jit
    def run(params, x_BLD, rng):
        context = Context(valid=jnp.ones(x_BLD.shape[:2], bool), train=train)
        x_GSD, tokens = groups.group(x_BLD, context, group_rows)
        found = All().apply(params, x_GSD, tokens, rngs={"router": rng})
        shape = (*x_BLD.shape[:2], 2)
        return {
            name: [value.reshape(shape) for value in (routing.expert, routing.weight, routing.keep)]
            for name, routing in found.items()
        }

    return lambda seed=3: jax.device_get(run(params, x_BLD, jax.random.key(seed)))


@pytest.fixture(scope="module")
def noisy(params):
    return route(params)


def same(found, expected):
    for name in ROUTERS:
        np.testing.assert_array_equal(found[name][0], expected[name][0], err_msg=name)
        np.testing.assert_allclose(found[name][1], expected[name][1], rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(found[name][2], expected[name][2], err_msg=name)


def test_neither_groups_nor_padding_nor_devices_change_the_noise(params, noisy):
    longer = np.pad(X, ((0, 0), (0, L), (0, 0)), constant_values=1.0)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    found = route(params, jax.device_put(longer, NamedSharding(mesh, P("data"))), group_rows=None)()
    same({name: [value[:, :L] for value in of] for name, of in found.items()}, noisy())


def test_noise_is_on_in_training_alone_and_follows_its_key(params, noisy):
    first, other, quiet = noisy(), noisy(4), route(params, train=False)()
    for name in ROUTERS:
        for a, b in ((first, other), (first, quiet)):
            assert any(not np.array_equal(u, v) for u, v in zip(a[name], b[name], strict=True)), name
        logits = np.asarray(X) @ params["params"][f"routers_{name}"]["score"]["kernel"]
        np.testing.assert_array_equal(quiet[name][0], np.argsort(-logits, -1)[..., :2])
        assert quiet[name][2].all()


def test_nothing_is_drawn_where_nothing_is_trained(params):
    """So that evaluation needs no key."""
    x_GSD, tokens = groups.group(X, Context(valid=np.ones((B, L), bool)), 1)
    jax.eval_shape(lambda: All().apply(params, x_GSD, tokens))


def one_group(size):
    numbers = np.arange(size, dtype=np.int32)[None]
    return Tokens(valid=numbers >= 0, rows=np.zeros_like(numbers), positions=numbers, train=True)


def drawn(module, params, size=4000):
    """Noise of identical tokens, [size, E]."""
    logits, x, rngs = np.zeros((1, size, E)), np.ones((1, size, D)), {"router": jax.random.key(0)}
    return np.asarray(jax.jit(lambda: module.apply(params, logits, x, one_group(size), rngs=rngs))())[0]


def test_the_size_of_the_noise():
    found = drawn(noise.Normal(), {})
    np.testing.assert_allclose(found.std(0), 1 / E, rtol=0.05)
    np.testing.assert_allclose(found.mean(0), 0, atol=0.01)
    # x W is the sum of D equal entries: -2, 0, 2, ..., and the standard deviation its softplus.
    product = np.array([-2.0, 0.0, 2.0, 0.0, 0.0, 4.0], np.float32)
    params = {"params": {"scale": {"kernel": np.tile(product / D, (D, 1))}}}
    np.testing.assert_allclose(drawn(noise.Learned(), params).std(0), np.log1p(np.exp(product)), rtol=0.05)


def test_the_scale_of_learned_noise_has_a_gradient(drawn):
    router, x, tokens = TopK(E, 2, noise=noise.Learned()), np.ones((1, 9, D)), one_group(9)

    params = drawn(router, x, tokens)
    weight = lambda params: router.apply(params, x, tokens, rngs={"router": jax.random.key(0)}).weight
    found = jax.jit(jax.grad(lambda params: jnp.square(weight(params)).sum()))(params)["params"]
    assert found["noise"]["scale"]["kernel"].any()
    assert found["score"]["kernel"].any()


def test_jitter_multiplies_the_input_by_numbers_around_one():
    """With an identity kernel the logits are the jittered input itself."""
    identity = lambda key, shape, dtype=jnp.float32: jnp.eye(*shape, dtype=dtype)
    router = TopK(D, 1, jitter=0.25, kernel_init=identity)
    x = np.broadcast_to(np.arange(1.0, D + 1), (1, 4000, D))
    run = jax.jit(lambda: router.init_with_output(jax.random.key(0), x, one_group(4000))[0].logits)
    ratio = np.asarray(run()) / x
    assert 0.75 <= ratio.min() < 0.76
    assert 1.24 < ratio.max() < 1.25001
    np.testing.assert_allclose(ratio.mean((0, 1)), 1, atol=0.01)


def test_jitter_below_one():
    with pytest.raises(ValueError, match=r"jitter is 1\.0; allowed: at least 0 and below 1"):
        jax.eval_shape(TopK(E, 2, jitter=1.0).init, jax.random.key(0), X[:1], one_group(L))


def test_ties_at_random_belong_to_tokens_too():
    """Of equal tokens expert choice takes the same ones whatever the group's padding."""
    router = ExpertChoice(E, tokens=12, factor=1.0, tie=at_random)

    @jax.jit
    def taken(valid):
        tokens = one_group(valid.shape[1]).replace(valid=valid)
        x = jnp.ones((1, valid.shape[1], D))
        params = {"params": {"score": {"kernel": np.ones((D, E), np.float32)}}}
        return router.apply(params, x, tokens, rngs={"router": jax.random.key(1)})

    short, long = taken(np.ones((1, 12), bool)), taken(np.arange(20)[None] < 12)
    np.testing.assert_array_equal(long.token, short.token)
    assert np.asarray(long.keep).all()
    assert len(np.unique(np.asarray(short.token).reshape(E, 2), axis=0)) > 1
