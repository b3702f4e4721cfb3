"""A mixture in the blocks of an encoder and a decoder: sums and recordings are stacked over layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones.attention import SelfAttention
from backbones.blocks import PreNorm
from backbones.cached_attention import CachedAttention
from backbones.decoder import TransformerDecoder
from backbones.decoder_blocks import PreNorm as DecoderPreNorm
from backbones.embedding import TokenEmbedding
from backbones.encoder import TransformerEncoder
from moe.capacity import Capacity
from moe.experts import Gated
from moe.mixture import Mixture, replayed
from moe.one_hot import OneHot
from moe.routers import TopK

LAYERS, EXPERTS, K = 3, 4, 2
BATCH = {
    "tokens": np.random.default_rng(0).integers(1, 30, size=(4, 6)).astype(np.int32),
    "mask": np.arange(6)[None] < np.array([[6], [3], [5], [1]]),
}


def model(kind):
    mixture = Mixture(TopK(EXPERTS, K), Gated(8), OneHot(Capacity(factor=0.7, tokens=6)))
    embed = TokenEmbedding(vocab_size=30, width=16)
    if kind == "encoder":
        return TransformerEncoder(embed, PreNorm(SelfAttention(heads=2), mixture), LAYERS)
    return TransformerDecoder(embed, DecoderPreNorm(CachedAttention(heads=2), mixture), LAYERS)


@pytest.mark.parametrize("kind", ["encoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_sums_and_recordings_have_a_layer_axis_and_replay_is_exact(drawn, kind):
    module = model(kind)
    params = drawn(module, BATCH)["params"]
    apply = jax.jit(lambda variables: module.apply(variables, BATCH))
    record = jax.jit(lambda variables: module.apply(variables, BATCH, mutable=["routing"]))
    plain = apply({"params": params})
    recorded_output, recorded = record({"params": params})
    assert plain.aux["count"].shape == (LAYERS, 4, EXPERTS)
    np.testing.assert_array_equal(plain.aux["tokens"], np.tile([6.0, 3.0, 5.0, 1.0], (LAYERS, 1)))
    np.testing.assert_array_equal(plain.aux["count"].sum(-1), K * plain.aux["tokens"])
    assert plain.aux["dropped"].sum() > 0
    (edges,) = {leaf.shape for leaf in jax.tree.leaves(recorded)}
    assert edges == (LAYERS, 4, 6 * K)

    again = apply({"params": params, **replayed(recorded)})
    np.testing.assert_array_equal(again.last, plain.last)
    np.testing.assert_array_equal(recorded_output.last, plain.last)

    # Layers go elsewhere when the recording says so.
    choice = recorded["routing"]["block"]["feed_forward"]["choice"]
    moved = {
        "routing": {
            "block": {"feed_forward": {"choice": choice.replace(expert=(choice.expert + 1) % EXPERTS)}}
        }
    }
    other = apply({"params": params, **replayed(moved)})
    assert np.abs(other.last - plain.last).max() > 1e-3
    assert jnp.isfinite(other.last).all()
