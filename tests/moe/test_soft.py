"""The soft mixture against loops over slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.experts import Dense
from moe.feed_forward import Context
from moe.soft import Soft

B, L, D, E, P, F = 2, 5, 6, 3, 2, 4


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(a, b):
    for ours, oracle in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        oracle = np.asarray(oracle)
        assert np.abs(np.asarray(ours) - oracle).max() <= 1e-5 * np.abs(oracle).max()


def oracle(params, x_SD):
    """One group without padding, slot by slot."""
    unit = lambda v: v / jnp.sqrt((v * v).sum() + 1e-6)
    tokens = jnp.stack([unit(x) for x in x_SD])
    slots = [(e, p) for e in range(E) for p in range(P)]
    logits = params["scale"] * jnp.stack([tokens @ unit(params["phi"][:, e, p]) for e, p in slots], axis=1)
    outputs = []
    for number, (e, _) in enumerate(slots):
        weights = jnp.exp(logits[:, number])
        hidden = jax.nn.gelu((weights / weights.sum()) @ x_SD @ params["experts"]["in"][e])
        outputs.append(hidden @ params["experts"]["out"][e])
    weights = jnp.exp(logits)
    return (weights / weights.sum(1, keepdims=True)) @ jnp.stack(outputs)


@pytest.fixture(scope="module")
def start(drawn):
    x = normal((B, L, D))
    params = drawn(Soft(E, Dense(F), slots=P), x, Context(valid=np.ones((B, L), bool)), ())["params"]
    return {**params, "scale": np.float32(3.0)}, x


@pytest.mark.parametrize("group_rows", [1, None])
def test_it_equals_loops_in_value_and_gradient(start, group_rows):
    params, x = start
    module = Soft(E, Dense(F), slots=P, group_rows=group_rows)
    valid = np.arange(L)[None] < np.array([[L], [3]])
    target = normal(x.shape, seed=2) * valid[..., None]

    def theirs(params, x):
        kept = [x[0], x[1, :3]]
        if group_rows is None:
            mixed = oracle(params, jnp.concatenate(kept))
            kept = [mixed[:L], mixed[L:]]
        else:
            kept = [oracle(params, group) for group in kept]
        return jnp.stack([kept[0], jnp.concatenate([kept[1], jnp.zeros((2, D))])])

    ours = lambda params, x: module.apply({"params": params}, x, Context(valid=valid), ())[0]

    @jax.jit
    def run():
        found = []
        for function in (ours, theirs):
            y, pull = jax.vjp(function, params, x)
            found.append((y, pull(target)))
        return found

    close(*run())


def test_padding_changes_nothing(start):
    """Neither what stands in it nor how much there is, and its own output is zero."""
    params, x = start
    run = jax.jit(
        lambda x, valid: Soft(E, Dense(F), slots=P).apply({"params": params}, x, Context(valid=valid), ())[0]
    )
    longer = np.concatenate([x, np.full((B, 3, D), 7.0, np.float32)], axis=1)
    y = run(longer, np.broadcast_to(np.arange(L + 3) < L, (B, L + 3)))
    y = np.asarray(y)
    close(y[:, :L], run(x, np.ones((B, L), bool)))
    assert not y[:, L:].any()


def test_without_a_scale_it_is_the_mean_of_all(start):
    """All weights are equal: each expert gets the mean of the tokens, and each token the mean of experts."""
    params, x = start
    context = Context(valid=np.ones((B, L), bool))
    flat = {**params, "scale": np.float32(0.0)}
    y = jax.jit(
        lambda: Soft(E, Dense(F, activation=abs), slots=P).apply({"params": flat}, x, context, ())[0]
    )()
    w_in, w_out = (np.asarray(params["experts"][name]) for name in ("in", "out"))
    mean = np.asarray(x).mean(1)
    expected = np.mean([np.abs(mean @ w_in[e]) @ w_out[e] for e in range(E)], axis=0)
    close(y, np.repeat(expected[:, None], L, axis=1))


def test_a_sequence_of_padding_alone_is_finite(start):
    params, x = start
    context = Context(valid=np.array([[False] * L, [True] * L]))

    @jax.jit
    def run(params, x):
        y, pull = jax.vjp(
            lambda params, x: Soft(E, Dense(F), slots=P).apply({"params": params}, x, context, ())[0],
            params,
            x,
        )
        return y, pull(jnp.ones_like(y))

    y, gradient = jax.device_get(run(params, x))
    assert not y[0].any()
    assert y[1].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not gradient[1][0].any()


def test_the_output_has_the_dtype_of_x(start):
    params, x = start
    half = x.astype(jnp.bfloat16)
    context = Context(valid=np.ones((B, L), bool))
    run = jax.jit(lambda x: Soft(E, Dense(F), slots=P).apply({"params": params}, x, context, ()))
    y, carry, aux = run(half)
    exact = np.asarray(run(half.astype(np.float32))[0])
    assert y.dtype == jnp.bfloat16
    assert np.abs(np.asarray(y, np.float32) - exact).max() <= 0.03 * np.abs(exact).max()
    assert (carry, aux) == ((), {})


@pytest.mark.parametrize("field", ["num_experts", "slots"])
def test_experts_and_slots_are_positive(field):
    module = Soft(**{**dict(num_experts=2, experts=Dense(F), slots=2), field: 0})
    context = Context(valid=jnp.ones((1, 2), bool))
    with pytest.raises(ValueError, match=f"{field} is 0; allowed: an integer of at least 1"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.ones((1, 2, D)), context, ()))
