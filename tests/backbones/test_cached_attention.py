"""Attention over given keys and values: as self-attention the same as `SelfAttention`, to the parameter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones.attention import SelfAttention
from backbones.cached_attention import CachedAttention
from backbones.masks import causal
from backbones.norms import RMSNorm
from backbones.positions import rotary
from moe.feed_forward import Context

B, L, S, D = 2, 4, 3, 8


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def over(attention, source_BMD, positions, x_BLD, context, **kwargs):
    """Both steps, for `init` and `apply`."""
    return attention(x_BLD, context, attention.keys_values(source_BMD, positions), **kwargs)


@pytest.mark.parametrize(
    "more",
    [
        {"use_bias": True},
        {"use_bias": False},
        {
            "use_bias": True,
            "out_bias": False,
            "key_value_heads": 1,
            "head_width": 6,
            "head_norm": RMSNorm(),
            "scale": 0.7,
        },
    ],
)
def test_equals_self_attention_with_the_same_parameters(more):
    x_BLD, bias = draw(0, B, L, D), draw(1, 1, 2, L, L)
    context = Context(valid=jnp.ones((B, L), bool), positions=jnp.arange(L)[None] + 3)
    fields = {"heads": 2, "rotate": rotary, **more}
    kwargs = {"visible": causal(context), "bias": bias}
    params = SelfAttention(**fields).init(jax.random.key(0), x_BLD, context)
    params = jax.tree.map(lambda p: draw(p.size, *p.shape), params)
    expected = SelfAttention(**fields).apply(params, x_BLD, context, **kwargs)
    arguments = (x_BLD, context.positions, x_BLD, context)
    ours = CachedAttention(**fields).apply(params, *arguments, **kwargs, method=over)
    assert np.max(np.abs(ours - expected)) <= 1e-5 * np.max(np.abs(expected))
    made = CachedAttention(**fields).init(jax.random.key(0), *arguments, method=over)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)


def test_cross_attention_equals_loops():
    x_BLD, source_BSD, module = draw(0, B, L, D), draw(1, B, S, D), CachedAttention(heads=2)
    context = Context(valid=jnp.ones((B, L), bool))
    mask = np.array([[1, 1, 0], [1, 1, 1]], bool)
    run = functools.partial(module.apply, method=over, visible=jnp.asarray(mask)[:, None, None])
    params = module.init(jax.random.key(0), source_BSD, None, x_BLD, context, method=over)
    params = jax.tree.map(lambda p: draw(p.size, *p.shape), params)
    p = {name: np.asarray(part["kernel"], np.float64) for name, part in params["params"].items()}
    mixed = np.zeros((B, L, D))
    for b, i, h in np.ndindex(B, L, 2):
        at = slice(4 * h, 4 * h + 4)
        query = (np.asarray(x_BLD[b, i], np.float64) @ p["query"])[at]
        source = np.asarray(source_BSD[b], np.float64)[mask[b]]
        scores = (source @ p["key"])[:, at] @ query / 2
        weights = np.exp(scores - scores.max())
        mixed[b, i, at] = weights @ (source @ p["value"])[:, at] / weights.sum()
    expected = mixed @ p["out"]
    ours = run(params, source_BSD, None, x_BLD, context)
    assert np.max(np.abs(ours - expected)) <= 1e-5 * np.max(np.abs(expected))
