"""Masks against loops over pairs of positions, the attention under each against loops, and who reaches whom
by the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.attention import SelfAttention, attend
from backbones.blocks import PostNorm, PreNorm
from backbones.encoded import read_batch
from backbones.encoder import prepend
from backbones.masks import both, causal, padding, prefix_lm, segments, window
from moe.feed_forward import Context, Dense
from training.build import build

B, L, D = 3, 6, 8

MASKS = {
    "padding": padding,
    "causal": causal,
    "prefix_lm": prefix_lm,
    "segments": segments,
    "causal segments": both(causal, segments),
    "window": functools.partial(window, before=2, after=1),
}

# What each mask shows, one pair at a time: query q and key k of a text with these segments.
SHOWS = {
    "padding": lambda q, k, segment: True,
    "causal": lambda q, k, segment: k <= q,
    "prefix_lm": lambda q, k, segment: k <= q or segment[k] in (0, -1),
    "segments": lambda q, k, segment: segment[k] in (segment[q], -1),
    "causal segments": lambda q, k, segment: k <= q and segment[k] in (segment[q], -1),
    "window": lambda q, k, segment: q - 2 <= k <= q + 1,
}


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def oracle(name, context):
    valid, segment = np.asarray(context.valid), np.asarray(context.segments)
    visible = np.zeros((*valid.shape, valid.shape[1]), bool)
    for b, q, k in np.ndindex(visible.shape):
        visible[b, q, k] = valid[b, k] and SHOWS[name](q, k, segment[b])
    return visible[:, None]


def draw_context(seed, prefix=0):
    """Segments that grow along the text, as kinds and packed texts do; padding anywhere; prefix vectors."""
    rng = np.random.default_rng(seed)
    batch = {
        "tokens": jnp.zeros((B, L - prefix), jnp.int32),
        "mask": jnp.asarray(rng.random((B, L - prefix)) < 0.8),
        "segments": jnp.asarray(np.sort(rng.integers(0, 3, (B, L - prefix)), axis=1), jnp.int32),
    }
    return prepend(read_batch(batch, train=False), prefix)


@pytest.mark.parametrize("name", MASKS)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 2))
def test_equals_loops(name, seed, prefix):
    context = draw_context(seed, prefix)
    visible = MASKS[name](context)
    assert visible.dtype == bool
    assert visible.ndim == 4
    np.testing.assert_array_equal(jnp.broadcast_to(visible, (B, 1, L, L)), oracle(name, context))


def test_by_hand():
    """Two texts of a prefix (0) and a target (1), the second shorter; then a row of packed texts 0, 1."""
    context = Context(
        valid=jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool),
        segments=jnp.array([[0, 0, 1, 1], [0, 1, 1, 0]]),
    )
    np.testing.assert_array_equal(
        prefix_lm(context)[:, 0].astype(int),
        [
            [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
            [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]],
        ],
    )
    np.testing.assert_array_equal(
        segments(context)[0, 0].astype(int), [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    )


ATTEND = jax.jit(lambda q, k, v, visible: attend(q, k, v, visible=visible))


@pytest.mark.parametrize("name", MASKS)
def test_attention_equals_loops(name):
    context = draw_context(1)
    context = context.replace(valid=context.valid.at[2].set(False))  # a text of nothing: all zeros
    q, k, v = (np.asarray(draw(seed, B, 2, L, 4), np.float64) for seed in range(3))
    expected, visible = np.zeros_like(q), oracle(name, context)
    for b, h, i in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(visible[b, 0, i])
        if len(seen):
            scores = [q[b, h, i] @ k[b, h, j] / np.sqrt(4) for j in seen]
            weights = np.exp(np.array(scores) - max(scores))
            expected[b, h, i] = sum(w * v[b, h, j] for w, j in zip(weights, seen, strict=True))
            expected[b, h, i] /= weights.sum()
    shape = (B, 1, L, L)  # one shape for all masks, so one compilation
    ours = ATTEND(
        draw(0, B, 2, L, 4),
        draw(1, B, 2, L, 4),
        draw(2, B, 2, L, 4),
        jnp.broadcast_to(MASKS[name](context), shape),
    )
    assert np.max(np.abs(ours - expected)) <= 1e-5 * np.max(np.abs(expected))
    assert not np.any(ours[2])


@functools.cache
def reach(block):
    """A jitted function: from x and a mask, the gradient of each output with respect to each input, summed in
    absolute value over D: [L, L] of one text."""
    module = block(attention=SelfAttention(heads=2), feed_forward=Dense(width=8))
    context = Context(valid=jnp.ones((1, L), bool))
    params = jax.jit(module.init)(jax.random.key(0), draw(0, 1, L, D), context, ())

    def outputs(x_LD, visible):
        return module.apply(params, x_LD[None], context, (), visible=visible)[0][0] @ draw(9, D, D)

    def absolute(x_LD, visible):
        return jnp.sum(jnp.abs(jax.jacrev(outputs)(x_LD, visible)), axis=(1, 3))

    return jax.jit(absolute)


@pytest.mark.parametrize("block", [PreNorm, PostNorm])
@pytest.mark.parametrize("name", MASKS)
def test_a_gradient_flows_exactly_where_the_mask_shows(name, block):
    """Zero to the last bit elsewhere, such as after a causal query; besides, x goes on to its own place."""
    for seed in range(3):
        context = jax.tree.map(lambda a: a[:1], draw_context(seed))
        visible = jnp.broadcast_to(MASKS[name](context), (1, 1, L, L))
        flows = reach(block)(draw(seed, L, D), visible) != 0
        np.testing.assert_array_equal(flows, oracle(name, context)[0, 0] | np.eye(L, dtype=bool))


@pytest.mark.parametrize("name", ["prefix_lm", "segments"])
def test_segments_must_be_there(name):
    with pytest.raises(ValueError, match=f"visible is {name}"):
        MASKS[name](Context(valid=jnp.ones((1, 2), bool)))


@pytest.mark.parametrize("field", ["before", "after"])
def test_a_window_reaches_no_less_than_nowhere(field):
    with pytest.raises(ValueError, match=f"{field} is -1; allowed: an integer of at least 0"):
        window(draw_context(0), **({"before": 0, "after": 0} | {field: -1}))


def test_builds_from_a_config():
    context = draw_context(0)
    for name in ("padding", "causal", "prefix_lm", "segments"):
        built = build({"name": f"backbones.masks.{name}"})
        np.testing.assert_array_equal(built(context), MASKS[name](context))
    spec = {
        "name": "backbones.masks.both",
        "first": {"name": "backbones.masks.causal"},
        "second": {"name": "backbones.masks.segments"},
    }
    np.testing.assert_array_equal(build(spec)(context), MASKS["causal segments"](context))
