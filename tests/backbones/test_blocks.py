"""The pre-norm block, composed by hand from the modules it was given."""

import jax
import jax.numpy as jnp
import numpy as np

from backbones.attention import SelfAttention, padding
from backbones.blocks import PreNorm
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


def test_equals_its_parts():
    x_BLD, context = setting()
    visible = padding(context)
    parts = {"attention": SelfAttention(heads=2), "feed_forward": Dense(width=12)}
    block = PreNorm(**parts, norm=LayerNorm())
    params = jax.eval_shape(block.init, jax.random.key(1), x_BLD, context, (), visible=visible)["params"]
    assert set(params) == {"attention", "feed_forward", "attention_norm", "feed_forward_norm"}
    params = jax.tree.map(lambda p: draw(p.size, *p.shape), params)
    ours, carry, aux = block.apply({"params": params}, x_BLD, context, (), visible=visible)

    def part(module, name, *args, **kwargs):
        return module.apply({"params": params[name]}, *args, **kwargs)

    normed = part(LayerNorm(), "attention_norm", x_BLD)
    x_BLD = x_BLD + part(parts["attention"], "attention", normed, context, visible=visible)
    normed = part(LayerNorm(), "feed_forward_norm", x_BLD)
    expected = x_BLD + part(parts["feed_forward"], "feed_forward", normed, context, ())[0]
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)
    assert carry == ()
    assert aux == {}


def test_carry_and_sums_of_the_feed_forward_come_through():
    x_BLD, context = setting()
    block = PreNorm(attention=SelfAttention(heads=2), feed_forward=Counting(width=1))
    carry = block.initial_carry(x_BLD, context)
    params = block.init(jax.random.key(1), x_BLD, context, carry)
    _, carry, aux = block.apply(params, x_BLD, context, carry)
    assert carry == 1
    assert aux["tokens"] == 7


def test_dropout_falls_on_both_halves():
    """At a rate of (almost) 1 nothing is added: x comes through both halves unchanged."""
    x_BLD, on = setting(train=True)
    block = PreNorm(attention=SelfAttention(heads=2), feed_forward=Dense(width=12), dropout=1.0)
    params = block.init({"params": jax.random.key(1), "dropout": jax.random.key(2)}, x_BLD, on, ())
    np.testing.assert_array_equal(
        block.apply(params, x_BLD, on, (), rngs={"dropout": jax.random.key(3)})[0], x_BLD
    )
    off = on.replace(train=False)
    assert np.max(np.abs(block.apply(params, x_BLD, off, ())[0] - x_BLD)) > 0.1
