"""The bag of subwords against a loop over tokens, and against gathered vectors."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones import bag
from backbones.bag import BagOfSubwords, linear, logarithmic, saturating
from backbones.embedding import TokenEmbedding

V, D = 11, 4


def make(**fields):
    return BagOfSubwords(embed=TokenEmbedding(V, D), **fields)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def draw_batch(seed=0, batch=6, length=20):
    rng = np.random.default_rng(seed)
    return {
        "tokens": jnp.asarray(rng.integers(0, V, (batch, length)), jnp.int32),
        "mask": jnp.asarray(np.arange(length)[None] < rng.integers(1, length + 1, (batch, 1))),
        "segments": jnp.asarray(rng.integers(0, 2, (batch, length)), jnp.int32),
    }


def random_params(module, batch):
    params = jax.eval_shape(module.init, jax.random.key(0), batch)
    return jax.tree.map(lambda p: draw(p.size, *p.shape), params)


def oracle(module, params, batch):
    """Token by token in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
    tokens, mask = np.asarray(batch["tokens"]), np.asarray(batch["mask"]).astype(bool)
    y = np.zeros((len(tokens), D))
    for b in range(len(tokens)):
        counts = collections.Counter()
        for t in np.flatnonzero(mask[b]):
            segment = batch["segments"][b, t]
            counts[int(tokens[b, t])] += (
                np.exp(p["log_segment_weight"][segment]) if module.segment_weights else 1.0
            )
        for token, n in counts.items():
            weight = float(module.saturation(jnp.float32(n))) * np.exp(p["log_token_weight"][token])
            y[b] += weight * p["embed"]["table"][token]
    return y


@pytest.mark.parametrize("saturation", [linear, logarithmic, functools.partial(saturating, k1=0.9)])
@pytest.mark.parametrize("segment_weights", [(), (1.0, 4.0)])
def test_equals_a_loop_over_tokens(saturation, segment_weights):
    module, batch = make(saturation=saturation, segment_weights=segment_weights), draw_batch()
    params = random_params(module, batch)
    encoded = module.apply(params, batch)
    expected = oracle(module, params, batch)
    assert encoded.last.shape == (6, 1, D)
    assert encoded.mask.shape == (6, 1)
    assert np.max(np.abs(encoded.last[:, 0] - expected)) <= 1e-5 * np.max(np.abs(expected))


def test_value_and_gradient_equal_the_gathered_form():
    """The other form: the vectors [B, L, D] of all positions, each with its share of its token's weight."""
    module, batch = make(segment_weights=(1.0, 3.0)), draw_batch(1)
    params = random_params(module, batch)
    target = draw(9, 6, D)

    def counted(params):
        return jnp.sum(module.apply(params, batch).last[:, 0] * target)

    def gathered(params):
        p, tokens = params["params"], batch["tokens"]
        weight_BL = jnp.exp(p["log_segment_weight"])[batch["segments"]] * batch["mask"]
        same_BLL = tokens[:, :, None] == tokens[:, None, :]
        count_BL = jnp.sum(same_BLL * weight_BL[:, None, :], axis=-1)
        share_BL = jnp.where(batch["mask"], jnp.log1p(count_BL) * weight_BL / jnp.maximum(count_BL, 1e-9), 0)
        share_BL *= jnp.exp(p["log_token_weight"])[tokens]
        return jnp.sum(jnp.einsum("bl,bld->bd", share_BL, p["embed"]["table"][tokens]) * target)

    ours, expected = (jax.jit(jax.grad(f))(params) for f in (counted, gathered))
    assert float(counted(params)) == pytest.approx(float(gathered(params)), rel=1e-5)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(a - b)) <= 1e-5 * np.max(np.abs(b))


RUN = jax.jit(make(segment_weights=(1.0, 2.0)).apply)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([1, 5]))
def test_order_and_padding_change_nothing(seed, extra):
    batch = draw_batch(seed)
    params = random_params(make(segment_weights=(1.0, 2.0)), draw_batch())
    shuffle = np.random.default_rng(seed).permutation(batch["tokens"].shape[1] + extra)
    garbage = {"tokens": V + 7, "mask": 0, "segments": -5}  # out of range, and never read
    padded = {
        name: jnp.pad(
            jnp.where(batch["mask"], a, garbage[name]), ((0, 0), (0, extra)), constant_values=garbage[name]
        )
        for name, a in batch.items()
    }
    ours = RUN(params, {name: a[:, shuffle] for name, a in padded.items()}).last
    np.testing.assert_allclose(ours, RUN(params, batch).last, rtol=1e-4, atol=1e-4)


def test_a_text_without_tokens_is_zero_and_masked():
    module, batch = make(), draw_batch()
    batch["mask"] = batch["mask"].at[2].set(False)
    params = random_params(module, batch)
    encoded = module.apply(params, batch)
    assert not encoded.mask[2, 0]
    assert encoded.mask.sum() == 5
    assert jnp.all(encoded.last[2] == 0)
    gradients = jax.grad(lambda p: module.apply(p, batch).last.sum())(params)
    assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradients))


def test_ids_out_of_range_are_nan():
    module, batch = make(segment_weights=(1.0, 2.0)), draw_batch()
    params = random_params(module, batch)
    batch["tokens"] = batch["tokens"].at[0, 0].set(V)
    batch["segments"] = batch["segments"].at[1, 0].set(2)
    nan_B = jnp.isnan(module.apply(params, batch).last[:, 0]).all(-1)
    np.testing.assert_array_equal(nan_B, [True, True, False, False, False, False])


def test_token_dropout_only_in_training_and_replayable():
    module, batch = make(token_dropout=0.5), draw_batch()
    params = random_params(module, batch)
    np.testing.assert_array_equal(module.apply(params, batch).last, make().apply(params, batch).last)

    def dropped(seed):
        return module.apply(params, batch, train=True, rngs={"dropout": jax.random.key(seed)}).last

    np.testing.assert_array_equal(dropped(0), dropped(0))
    assert np.max(np.abs(dropped(0) - dropped(1))) > 0.01


def test_dropped_tokens_are_as_though_absent():
    valid = jnp.ones((4000, 6), bool).at[:, 4:].set(False)
    kept = bag.drop_tokens(jax.random.key(0), valid, 0.7)
    assert not jnp.any(kept & ~valid)
    assert jnp.all(jnp.any(kept, axis=1)), "a text keeps something"
    # each of 4 tokens stays with 0.3; all four when none would: 0.3 + 0.7^4 = 0.5401
    assert kept[:, :4].mean() == pytest.approx(0.5401, abs=0.01)


def test_weights_by_hand():
    # Token 7 twice in the text (1 each) and once in the title (4): count 6; token 3 masked.
    tokens, weight = jnp.array([[7, 7, 7, 3]]), jnp.array([[1.0, 1.0, 4.0, 0.0]])
    np.testing.assert_array_equal(bag.count(tokens, weight, 9), [[0, 0, 0, 0, 0, 0, 0, 6, 0]])
    np.testing.assert_array_equal(bag.count(jnp.array([[9, -1, 2]]), jnp.ones((1, 3)), 9).sum(), 1)
    np.testing.assert_allclose(logarithmic(jnp.array([0.0, 1.0])), [0, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(saturating(jnp.array([0.0, 1.0, 3.0]), k1=1.0), [0, 1, 1.5])


def test_what_cannot_be_is_refused():
    batch = draw_batch()
    with pytest.raises(ValueError, match="prefix"):
        make().init(jax.random.key(0), batch, prefix=jnp.ones((6, 1, D)))
    del batch["segments"]
    with pytest.raises(ValueError, match="segment_weights are"):
        make(segment_weights=(1.0, 2.0)).init(jax.random.key(0), batch)
    with pytest.raises(ValueError, match="positive numbers"):
        make(segment_weights=(1.0, 0.0))
    with pytest.raises(ValueError, match="token_dropout is 1"):
        make(token_dropout=1.0)
