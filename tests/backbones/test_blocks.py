"""Pre- and post-norm blocks against their parts composed in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones.attention import SelfAttention
from backbones.blocks import PostNorm, PreNorm
from backbones.masks import padding
from backbones.norms import LayerNorm
from moe.feed_forward import Context, Dense


class Counting(Dense):
    """A feed-forward with a carry and a sum, as sparse layers have."""

    def initial_carry(self, x_BLD, context):
        return jnp.zeros(())

    def __call__(self, x_BLD, context, carry):
        return 0 * x_BLD, carry + 1, {"tokens": jnp.sum(context.valid)}


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def setting(train=False):
    x_BLD = draw(0, 2, 4, 8)
    valid = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    return x_BLD, Context(valid=valid, positions=jnp.arange(4)[None], train=train)


def wire_in_numpy(block, attention, feed_forward, attention_norm, feed_forward_norm, x):
    if block is PreNorm:
        x = x + attention(attention_norm(x))
        return x + feed_forward(feed_forward_norm(x))
    x = attention_norm(x + attention(x))
    return feed_forward_norm(x + feed_forward(x))


@pytest.mark.parametrize("block", [PreNorm, PostNorm])
def test_equals_its_parts(block):
    x_BLD, context = setting()
    visible, bias = padding(context), draw(7, 1, 2, 4, 4)
    parts = {"attention": SelfAttention(heads=2), "feed_forward": Dense(width=12)}
    module = block(**parts, norm=LayerNorm())
    params = jax.eval_shape(module.init, jax.random.key(1), x_BLD, context, ())["params"]
    assert set(params) == {"attention", "feed_forward", "attention_norm", "feed_forward_norm"}
    params = jax.tree.map(lambda p: draw(p.size, *p.shape), params)
    ours, carry, aux = module.apply({"params": params}, x_BLD, context, (), visible=visible, bias=bias)

    def part(name, *args, **kwargs):
        def run(x):
            y = parts[name].apply({"params": params[name]}, jnp.asarray(x, jnp.float32), *args, **kwargs)
            return np.asarray(y[0] if isinstance(y, tuple) else y, np.float64)

        return run

    def norm(name):
        p = jax.tree.map(lambda a: np.asarray(a, np.float64), params[name])

        def run(x):
            x = x - x.mean(-1, keepdims=True)
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

        return run

    expected = wire_in_numpy(
        block,
        part("attention", context, visible=visible, bias=bias),
        part("feed_forward", context, ()),
        norm("attention_norm"),
        norm("feed_forward_norm"),
        np.asarray(x_BLD, np.float64),
    )
    assert np.max(np.abs(ours - expected)) <= 1e-5 * np.max(np.abs(expected))
    assert carry == ()
    assert aux == {}


@pytest.mark.parametrize("block", [PreNorm, PostNorm])
def test_carry_and_sums_of_the_feed_forward_come_through(block):
    x_BLD, context = setting()
    block = block(attention=SelfAttention(heads=2), feed_forward=Counting(width=1))
    carry = block.initial_carry(x_BLD, context)
    params = block.init(jax.random.key(1), x_BLD, context, carry)
    _, carry, aux = block.apply(params, x_BLD, context, carry)
    assert carry == 1
    assert aux["tokens"] == 7


def test_dropout_falls_on_both_halves():
    """At a rate of 1 nothing is added: x comes through both halves unchanged, or normalized twice."""
    x_BLD, on = setting(train=True)
    parts = {"attention": SelfAttention(heads=2), "feed_forward": Dense(width=12), "norm": LayerNorm()}
    twice = LayerNorm().apply({"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, x_BLD)
    for block, expected in ((PreNorm, x_BLD), (PostNorm, twice)):
        block = block(**parts, dropout=1.0)
        params = block.init({"params": jax.random.key(1), "dropout": jax.random.key(2)}, x_BLD, on, ())
        ours = block.apply(params, x_BLD, on, (), rngs={"dropout": jax.random.key(3)})[0]
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        off = on.replace(train=False)
        assert np.max(np.abs(block.apply(params, x_BLD, off, ())[0] - expected)) > 0.1
