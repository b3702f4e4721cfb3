"""An encoder and a decoder from nested specs of plain values: every part is reachable by its dotted path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones import blocks, decoder_blocks, masks
from backbones.attention import SelfAttention
from backbones.cached_attention import CachedAttention
from backbones.decoder import TransformerDecoder
from backbones.embedding import TokenEmbedding
from backbones.encoded import Encoded
from backbones.encoder import TransformerEncoder
from backbones.norms import LayerNorm
from backbones.positions import InTurn, LearnedPositions, LearnedSegments, rotary
from backbones.relative import RelativeBias
from moe.feed_forward import Dense, Gated
from training.build import build

B, L, D, V = 3, 6, 8, 13

BATCH = {
    "tokens": jnp.asarray(np.random.default_rng(0).integers(0, V, (B, L)), jnp.int32),
    "mask": jnp.arange(L)[None] < jnp.array([[L], [2], [3]]),
    "segments": jnp.arange(L)[None] // 3 * jnp.ones((B, 1), jnp.int32),
}
ENCODED = Encoded(
    last=jnp.asarray(np.random.default_rng(1).normal(size=(B, 4, D)), jnp.float32),
    mask=jnp.ones((B, 4), bool),
)

EMBED = {"name": "backbones.embedding.TokenEmbedding", "vocab_size": V, "width": D}
NORM = {"name": "backbones.norms.LayerNorm", "use_bias": False}

PRE_NORM = {
    "name": "backbones.encoder.TransformerEncoder",
    "num_layers": 2,
    "embed": EMBED,
    "position": {"name": "backbones.positions.LearnedPositions", "max_length": L},
    "block": {
        "name": "backbones.blocks.PreNorm",
        "attention": {
            "name": "backbones.attention.SelfAttention",
            "heads": 2,
            "rotate": {"name": "backbones.positions.rotary", "base": 500.0},
        },
        "feed_forward": {
            "name": "moe.feed_forward.Gated",
            "width": 10,
            "activation": {"name": "jax.nn.gelu"},
        },
        "norm": NORM,
        "dropout": 0.1,
    },
    "norm": NORM,
    "visible": {"name": "backbones.masks.padding"},
    "remat": {"name": "backbones.remat.save_projections"},
    "dtype": "bfloat16",
}
PRE_NORM_BY_HAND = TransformerEncoder(
    num_layers=2,
    embed=TokenEmbedding(V, D),
    position=LearnedPositions(max_length=L),
    block=blocks.PreNorm(
        attention=SelfAttention(heads=2, rotate=functools.partial(rotary, base=500.0)),
        feed_forward=Gated(width=10, activation=jax.nn.gelu),
        norm=LayerNorm(use_bias=False),
    ),
    norm=LayerNorm(use_bias=False),
    dtype="bfloat16",
)

POST_NORM = {
    "name": "backbones.encoder.TransformerEncoder",
    "num_layers": 1,
    "embed": EMBED,
    "position": {
        "name": "backbones.positions.InTurn",
        "first": {"name": "backbones.positions.LearnedPositions", "max_length": L},
        "second": {"name": "backbones.positions.LearnedSegments", "num_segments": 2},
    },
    "block": {
        "name": "backbones.blocks.PostNorm",
        "attention": {"name": "backbones.attention.SelfAttention", "heads": 2},
        "feed_forward": {"name": "moe.feed_forward.Dense", "width": 12},
        "norm": {"name": "backbones.norms.LayerNorm"},
    },
    "norm": None,
    "visible": {
        "name": "backbones.masks.both",
        "first": {"name": "backbones.masks.causal"},
        "second": {"name": "backbones.masks.segments"},
    },
    "bias": {"name": "backbones.relative.RelativeBias", "heads": 2, "max_distance": 16},
}
POST_NORM_BY_HAND = TransformerEncoder(
    num_layers=1,
    embed=TokenEmbedding(V, D),
    position=InTurn(LearnedPositions(max_length=L), LearnedSegments(num_segments=2)),
    block=blocks.PostNorm(attention=SelfAttention(heads=2), feed_forward=Dense(width=12), norm=LayerNorm()),
    norm=None,
    visible=masks.both(masks.causal, masks.segments),
    bias=RelativeBias(heads=2, max_distance=16),
)

ATTENTION = {"name": "backbones.cached_attention.CachedAttention", "heads": 2}
DECODER = {
    "name": "backbones.decoder.TransformerDecoder",
    "num_layers": 1,
    "embed": EMBED,
    "block": {
        "name": "backbones.decoder_blocks.PostNorm",
        "attention": ATTENTION,
        "cross_attention": ATTENTION,
        "feed_forward": {"name": "moe.feed_forward.Dense", "width": 12},
    },
    "norm": None,
    "output": {**EMBED, "vocab_size": V + 2},
    "visible": {"name": "backbones.masks.prefix_lm"},
    "bias": {"name": "backbones.relative.RelativeBias", "heads": 2, "bidirectional": False},
}
DECODER_BY_HAND = TransformerDecoder(
    num_layers=1,
    embed=TokenEmbedding(V, D),
    block=decoder_blocks.PostNorm(
        attention=CachedAttention(heads=2),
        cross_attention=CachedAttention(heads=2),
        feed_forward=Dense(width=12),
    ),
    norm=None,
    output=TokenEmbedding(V + 2, D),
    visible=masks.prefix_lm,
    bias=RelativeBias(heads=2, bidirectional=False),
)


@pytest.mark.parametrize(
    ("spec", "by_hand", "source"),
    [
        (PRE_NORM, PRE_NORM_BY_HAND, ()),
        (POST_NORM, POST_NORM_BY_HAND, ()),
        (DECODER, DECODER_BY_HAND, (ENCODED,)),
    ],
    ids=["pre-norm encoder", "post-norm encoder", "decoder"],
)
def test_equals_what_the_classes_make(spec, by_hand, source):
    params = jax.jit(by_hand.init)(jax.random.key(0), BATCH, *source)
    ours, expected = (jax.jit(m.apply)(params, BATCH, *source) for m in (build(spec), by_hand))
    assert np.any(expected.last != 0)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
