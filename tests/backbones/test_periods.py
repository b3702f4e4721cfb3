"""A period equals its blocks applied by hand, one after the other; a decoder of them decodes with a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones import blocks, decoder_blocks
from backbones import cache as caches
from backbones.attention import SelfAttention
from backbones.cached_attention import CachedAttention
from backbones.decoder import TransformerDecoder
from backbones.embedding import TokenEmbedding
from backbones.encoded import Encoded, read_batch
from backbones.encoder import TransformerEncoder
from backbones.masks import padding
from backbones.norms import RMSNorm
from backbones.periods import DecoderPeriod, Period
from backbones.positions import rotary
from moe.experts import Gated
from moe.feed_forward import Dense
from moe.mixture import Mixture
from moe.one_hot import OneHot
from moe.routers import TopK

B, L, S, D, V, E = 2, 5, 4, 8, 11, 4
PERIODS, EVERY = 2, 3
MIXTURE = Mixture(TopK(E, 2), Gated(6), OneHot())
TEXT = {
    "tokens": np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32),
    "mask": np.arange(L)[None] < np.array([[5], [3]]),
}


def encoder_block(feed_forward):
    return blocks.PreNorm(SelfAttention(heads=2, rotate=rotary), feed_forward)


def decoder_block(feed_forward, cross=True):
    look_across = CachedAttention(heads=2) if cross else None
    return decoder_blocks.PreNorm(
        attention=CachedAttention(heads=2, rotate=rotary),
        cross_attention=look_across,
        feed_forward=feed_forward,
    )


def decoder(cross):
    period = DecoderPeriod(decoder_block(Dense(12), cross), decoder_block(MIXTURE, cross), EVERY)
    return TransformerDecoder(TokenEmbedding(V, D), period, PERIODS)


def close(a, b):
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * np.abs(b).max()


def at(tree, number):
    return jax.tree.map(lambda x: x[number], tree)


def test_an_encoder_of_periods_is_its_blocks_by_hand():
    dense, sparse = encoder_block(Dense(12)), encoder_block(MIXTURE)
    module = TransformerEncoder(TokenEmbedding(V, D), Period(dense, sparse, EVERY), PERIODS)
    params = jax.jit(module.init)(jax.random.key(0), TEXT)["params"]
    assert set(params["block"]) == {"dense_0", "dense_1", "sparse"}
    encoded = jax.jit(module.apply)({"params": params}, TEXT)
    assert encoded.aux["count"].shape == (PERIODS, B, E)

    @jax.jit
    def by_hand(params):
        context, counts = read_batch(TEXT, train=False), []
        x = params["embed"]["table"][TEXT["tokens"]]
        for period in range(PERIODS):
            of_period = at(params["block"], period)
            for name, block in (("dense_0", dense), ("dense_1", dense), ("sparse", sparse)):
                x, _, aux = block.apply({"params": of_period[name]}, x, context, (), visible=padding(context))
            counts.append(aux["count"])
        return RMSNorm().apply({"params": params["final_norm"]}, x), jnp.stack(counts)

    x, counts = by_hand(params)
    np.testing.assert_array_equal(counts, encoded.aux["count"])
    close(encoded.last, np.where(TEXT["mask"][:, :, None], x, 0))
    # No two layers share a parameter.
    kernels = [params["block"][name]["attention"]["query"]["kernel"] for name in params["block"]]
    assert len({np.asarray(k[p]).tobytes() for k in kernels for p in range(PERIODS)}) == PERIODS * EVERY


@pytest.mark.slow
def test_cached_decoding_is_that_of_the_whole_text():
    module = decoder(cross=True)
    mask = jnp.asarray(np.arange(S)[None] < np.array([[4], [2]]))
    last = jax.random.normal(jax.random.key(1), (B, S, D)) * mask[:, :, None]
    encoded = Encoded(last=last, mask=mask)
    batch = {**TEXT, "mask": np.ones((B, L), bool)}
    params = {"params": jax.jit(module.init)(jax.random.key(0), batch, encoded)["params"]}
    whole = jax.jit(module.apply)(params, batch, encoded)
    cache = jax.jit(lambda encoded: module.apply(params, B, L, encoded, method="start"))(encoded)
    assert cache.own.keys.shape == (PERIODS * EVERY, B, 2, L, D // 2)
    cache = caches.reorder(cache, jnp.array([1, 0]))  # rows change places, as beams do
    step = jax.jit(lambda new, cache: module.apply(params, new, cache, method="step"))
    for start, end in ((0, 3), (3, 4), (4, 5)):  # two shapes to compile
        new = {name: x[::-1, start:end] for name, x in batch.items()}
        decoded, cache = step(new, cache)
        close(decoded.logits[::-1], whole.logits[:, start:end])
        np.testing.assert_array_equal(decoded.aux["count"][:, ::-1].sum(-1), 2.0 * (end - start))


def test_each_layer_of_a_decoder_keeps_its_own_keys():
    """Emptying one layer's slots in the cache changes the output, whichever layer it is."""
    module = decoder(cross=False)
    params = {"params": jax.jit(module.init)(jax.random.key(0), TEXT)["params"]}
    step = jax.jit(lambda new, cache: module.apply(params, new, cache, method="step"))
    first = {"tokens": TEXT["tokens"][:, :4], "mask": np.ones((B, 4), bool)}
    last = {"tokens": TEXT["tokens"][:, 4:], "mask": np.ones((B, 1), bool)}
    _, cache = step(first, module.apply(params, B, L, method="start"))
    logits = step(last, cache)[0].logits
    for layer in range(PERIODS * EVERY):
        others = (np.arange(PERIODS * EVERY) != layer)[:, None, None, None, None]
        emptied = cache.replace(own=jax.tree.map(lambda x, others=others: x * others, cache.own))
        other = step(last, emptied)[0].logits
        assert np.abs(other - logits).max() > 1e-5


def test_what_a_period_refuses():
    dense, sparse = encoder_block(Dense(12)), encoder_block(MIXTURE)

    def make(kind, *fields):
        encode = TransformerDecoder if kind is DecoderPeriod else TransformerEncoder
        return jax.eval_shape(encode(TokenEmbedding(V, D), kind(*fields), 1).init, jax.random.key(0), TEXT)

    with pytest.raises(ValueError, match="every is 0; allowed: an integer of at least 1"):
        make(Period, dense, sparse, 0)
    with pytest.raises(ValueError, match=r"dense gives sums \(count"):
        make(Period, sparse, sparse, 2)
    with pytest.raises(ValueError, match=r"dense is PreNorm; allowed: one of backbones\.decoder_blocks"):
        make(DecoderPeriod, dense, sparse, 2)
    alone = decoder_block(Dense(12), cross=False)
    with pytest.raises(ValueError, match="cross_attention is in one of dense and sparse"):
        make(DecoderPeriod, decoder_block(Dense(12)), decoder_block(MIXTURE, cross=False), 2)
    other = decoder_blocks.PreNorm(CachedAttention(heads=4), MIXTURE)
    with pytest.raises(ValueError, match="heads are 2 in dense and 4 in sparse"):
        make(DecoderPeriod, alone, other, 2)
