"""Attention against loops in NumPy, its masks, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from backbones.attention import SelfAttention, attend, merge_heads, split_heads
from backbones.masks import padding
from backbones.norms import RMSNorm
from backbones.positions import rotary
from moe.feed_forward import Context

B, H, L, M, D = 3, 2, 4, 5, 6


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def attend_oracle(q, k, v, visible=None, bias=None, scale=None):
    """One query at a time in float64; a query that sees nothing gets zeros."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
    scale = 1 / np.sqrt(q.shape[-1]) if scale is None else scale
    everywhere = (*q.shape[:3], k.shape[2])
    visible = np.broadcast_to(True if visible is None else visible, everywhere)
    bias = np.broadcast_to(0.0 if bias is None else bias, everywhere)
    y = np.zeros_like(q)
    for b, h, i in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(visible[b, h, i])
        if len(seen):
            scores = k[b, h, seen] @ q[b, h, i] * scale + bias[b, h, i, seen]
            weights = np.exp(scores - scores.max())
            y[b, h, i] = weights @ v[b, h, seen] / weights.sum()
    return y


def assert_close(ours, oracle, tolerance=1e-5):
    assert np.max(np.abs(ours - oracle)) <= tolerance * np.max(np.abs(oracle))


VISIBLE = {
    "everything": None,
    "padding": np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)[:, None, None, :],
    "causal": np.tril(np.ones((L, M), bool))[None, None],
    "per head": np.random.default_rng(0).random((B, H, L, M)) < 0.4,
}


@pytest.mark.parametrize("visible", VISIBLE.values(), ids=VISIBLE)
@pytest.mark.parametrize("bias_shape", [None, (1, H, L, M), (B, 1, 1, M)])
def test_attend_equals_loops(visible, bias_shape):
    q, k, v = draw(0, B, H, L, D), draw(1, B, H, M, D), draw(2, B, H, M, D)
    bias = None if bias_shape is None else draw(3, *bias_shape)
    ours = attend(q, k, v, visible=None if visible is None else jnp.asarray(visible), bias=bias)
    assert_close(ours, attend_oracle(q, k, v, visible, bias))


@pytest.mark.parametrize("visible", ["padding", "causal", "per head"])
def test_shared_keys_equal_loops(visible):
    """Four heads of queries, the first two with the first head of keys; with a scale of its own."""
    q, k, v = draw(0, B, 4, L, D), draw(1, B, 2, M, D), draw(2, B, 2, M, D)
    seen = VISIBLE[visible]
    if visible == "per head":
        seen = np.concatenate([seen, ~seen], axis=1)
    bias = draw(3, 1, 4, L, M)
    ours = attend(q, k, v, visible=jnp.asarray(seen), bias=bias, scale=0.7)
    assert_close(ours, attend_oracle(q, k, v, seen, bias, scale=0.7))


@pytest.mark.parametrize("visible", ["padding", "per head"])
def test_attend_gradients_equal_finite_differences(visible):
    q, k, v, bias = draw(0, B, H, L, D), draw(1, B, H, M, D), draw(2, B, H, M, D), draw(3, 1, H, L, M)
    seen = jnp.asarray(VISIBLE[visible])
    check_grads(
        lambda q, k, v, bias: attend(q, k, v, visible=seen, bias=bias),
        (q, k, v, bias),
        1,
        ["rev"],
        1e-2,
        1e-2,
    )


def test_a_row_that_is_all_padding_is_zero_and_passes_no_gradient():
    q, k, v = draw(0, B, H, L, D), draw(1, B, H, M, D), draw(2, B, H, M, D)
    seen = jnp.asarray(VISIBLE["padding"])
    assert jnp.all(attend(q, k, v, visible=seen)[2] == 0)
    gradients = jax.grad(
        lambda *qkv: jnp.sum(attend(*qkv, visible=seen) ** 2 + attend(*qkv, visible=seen)), (0, 1, 2)
    )
    for gradient in gradients(q, k, v):
        assert jnp.all(jnp.isfinite(gradient))
        assert jnp.all(gradient[2] == 0)
    _, of_k, of_v = gradients(q, k, v)
    assert jnp.all(of_k[0, :, 3:] == 0)  # hidden keys
    assert jnp.all(of_v[0, :, 3:] == 0)


def test_large_scores_do_not_overflow():
    q, k, v = 1e3 * draw(0, B, H, L, D), 1e3 * draw(1, B, H, M, D), draw(2, B, H, M, D)
    assert_close(attend(q, k, v), attend_oracle(q, k, v), 1e-4)


def test_bfloat16_is_close_and_keeps_its_dtype():
    q, k, v = draw(0, B, H, L, D), draw(1, B, H, M, D), draw(2, B, H, M, D)
    ours = attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert ours.dtype == jnp.bfloat16
    assert_close(ours.astype(jnp.float32), attend_oracle(q, k, v), 0.03)


def test_heads_split_and_merge():
    x_BLD = draw(0, B, L, D)
    heads = split_heads(x_BLD, 3)
    assert heads.shape == (B, 3, L, 2)
    np.testing.assert_array_equal(heads[:, 1], x_BLD[:, :, 2:4])
    np.testing.assert_array_equal(merge_heads(heads), x_BLD)


def test_module_equals_its_parts():
    x_BLD = draw(0, B, L, 8)
    context = Context(valid=jnp.arange(L)[None] < jnp.array([[4], [2], [0]]), positions=jnp.arange(L)[None])
    module = SelfAttention(heads=2, rotate=rotary, use_bias=True)
    params = module.init(jax.random.key(1), x_BLD, context)
    params = jax.tree.map(lambda p: draw(p.size, *p.shape), params)
    visible = padding(context)
    ours = module.apply(params, x_BLD, context, visible=visible)

    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
    x = np.asarray(x_BLD, np.float64)
    q, k, v = (split_heads(x @ p[n]["kernel"] + p[n]["bias"], 2) for n in ("query", "key", "value"))
    q, k = (rotary(jnp.asarray(a, jnp.float32), context.positions) for a in (q, k))
    mixed = attend_oracle(q, k, v, np.asarray(visible)).transpose(0, 2, 1, 3).reshape(B, L, 8)
    assert_close(ours, mixed @ p["out"]["kernel"] + p["out"]["bias"])


def test_module_with_every_field_equals_its_parts():
    """Four heads of width 6 in a model of width 8, two heads of keys, a norm of each, no bias at the end."""
    x_BLD = draw(0, B, L, 8)
    context = Context(valid=jnp.ones((B, L), bool), positions=jnp.arange(L)[None])
    module = SelfAttention(
        heads=4,
        rotate=rotary,
        use_bias=True,
        key_value_heads=2,
        head_width=6,
        head_norm=RMSNorm(),
        scale=0.7,
        out_bias=False,
    )
    params = module.init(jax.random.key(1), x_BLD, context)
    params = jax.tree.map(lambda p: draw(p.size, *p.shape), params)
    assert set(params["params"]["out"]) == {"kernel"}
    ours = module.apply(params, x_BLD, context)

    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
    made = []
    for name, heads in (("query", 4), ("key", 2), ("value", 2)):
        split = split_heads(np.asarray(x_BLD, np.float64) @ p[name]["kernel"] + p[name]["bias"], heads)
        if name != "value":
            split = split / np.sqrt(np.mean(split**2, axis=-1, keepdims=True)) * p[f"{name}_norm"]["scale"]
            split = rotary(jnp.asarray(split, jnp.float32), context.positions)
        made.append(split)
    mixed = attend_oracle(*made, scale=0.7).transpose(0, 2, 1, 3).reshape(B, L, 24)
    assert_close(ours, mixed @ p["out"]["kernel"])
    # A rotation that is handed over stands in place of the field.
    still = lambda x, positions: x
    other = module.clone(rotate=still).apply(params, x_BLD, context)
    np.testing.assert_array_equal(module.apply(params, x_BLD, context, rotate=still), other)


def test_dropout_on_the_weights():
    """In training the mean over keys stays, each query loses some; elsewhere nothing happens."""
    x_BLD = draw(0, 1, 64, 8)
    module = SelfAttention(heads=2, dropout=0.5)
    off = Context(valid=jnp.ones((1, 64), bool))
    params = module.init(jax.random.key(1), x_BLD, off)
    plain = SelfAttention(heads=2).apply(params, x_BLD, off)
    np.testing.assert_array_equal(module.apply(params, x_BLD, off), plain)
    on = off.replace(train=True)
    run = jax.jit(module.apply)
    draws = [run(params, x_BLD, on, rngs={"dropout": jax.random.key(s)}) for s in range(100)]
    assert np.max(np.abs(draws[0] - plain)) > 0.05
    assert np.max(np.abs(np.mean(draws, axis=0) - plain)) < 0.3 * np.max(np.abs(plain))


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_must_divide_the_width(heads):
    context = Context(valid=jnp.ones((1, 2), bool))
    with pytest.raises(ValueError, match=f"heads is {heads}.*width 8"):
        SelfAttention(heads=heads).init(jax.random.key(0), jnp.ones((1, 2, 8)), context)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"key_value_heads": 3}, "key_value_heads is 3; allowed: a divisor of heads, 4"),
        ({"key_value_heads": 0}, "key_value_heads is 0"),
        ({"head_width": 0}, "head_width is 0; allowed: an integer of at least 1"),
    ],
)
def test_sizes_of_heads_that_do_not_fit(fields, said):
    context = Context(valid=jnp.ones((1, 2), bool))
    with pytest.raises(ValueError, match=said):
        SelfAttention(heads=4, **fields).init(jax.random.key(0), jnp.ones((1, 2, 8)), context)
