"""The blocks of a decoder; that they equal NumPy is in `test_decoder`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones.cache import KeysValues
from backbones.cached_attention import CachedAttention
from backbones.decoder_blocks import Memory, PostNorm, PreNorm
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
    """x, its context, and keys and values of a source of three."""
    valid = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    context = Context(valid=valid, positions=jnp.arange(4)[None], train=train)
    return draw(0, 2, 4, 8), context, Memory(source=KeysValues(draw(1, 2, 2, 3, 4), draw(2, 2, 2, 3, 4)))


@pytest.mark.parametrize("kind", [PreNorm, PostNorm])
def test_carry_sums_and_keys_come_through(kind):
    x_BLD, context, memory = setting()
    block = kind(attention=CachedAttention(heads=2), feed_forward=Counting(width=1))
    carry = block.initial_carry(x_BLD, context)
    params = block.init(jax.random.key(1), x_BLD, context, carry, memory)
    _, carry, aux, own = block.apply(params, x_BLD, context, carry, memory)
    assert carry == 1
    assert aux["tokens"] == 7
    assert own.keys.shape == own.values.shape == (2, 2, 4, 4)


def test_dropout_falls_on_all_three_parts():
    """At a rate of 1 nothing is added: x comes through unchanged, or normalized three times."""
    x_BLD, on, memory = setting(train=True)
    attention = CachedAttention(heads=2)
    parts = {"attention": attention, "cross_attention": attention, "feed_forward": Dense(width=12)}
    thrice = LayerNorm().apply({"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, x_BLD)
    for kind, expected in ((PreNorm, x_BLD), (PostNorm, thrice)):
        block = kind(**parts, norm=LayerNorm(), dropout=1.0)
        keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
        params = block.init(keys, x_BLD, on, (), memory, method=with_source)
        ours = block.apply(params, x_BLD, on, (), memory, rngs={"dropout": jax.random.key(3)})[0]
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        off = on.replace(train=False)
        assert np.max(np.abs(block.apply(params, x_BLD, off, (), memory)[0] - expected)) > 0.1


def with_source(block, x_BLD, *args):
    """`init` with the parameters that make keys and values of a source."""
    block.read(x_BLD)
    return block(x_BLD, *args)
