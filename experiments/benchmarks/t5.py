"""T5 of the original shape (Raffel et al., 2020, "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer") as our encoder-decoder that spells docids, from weights under the names of Hugging
Face: `backbones.pretrained.t5`, with a vocabulary of its own on either side.

Letters: D model width, F feed-forward width, H heads, d width of a head, Y layers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from backbones.pretrained import names, t5
from backbones.pretrained.fields import Fields


def spec(*, words: int, symbols: int, width: int, hidden: int, heads: int, layers: int) -> dict[str, Any]:
    """The model as a config spells it.

    Args:
      words: entries of the encoder's vocabulary.
      symbols: entries of the decoder's, END included.
      width: D.
      hidden: F.
      heads: H, each D / H wide.
      layers: Y of the encoder, and as many of the decoder.
    """
    attention = dict(name="backbones.cached_attention.CachedAttention", heads=heads, scale=1.0)
    feed_forward = dict(name="moe.feed_forward.Dense", width=hidden, activation=dict(name="jax.nn.relu"))
    table = lambda size: dict(name="backbones.embedding.TokenEmbedding", vocab_size=size, width=width)
    bias = lambda both: dict(name="backbones.relative.RelativeBias", heads=heads, bidirectional=both)
    return dict(
        name="generative_retrieval.models.EncoderDecoder",
        encoder=dict(
            name="backbones.encoder.TransformerEncoder",
            num_layers=layers,
            embed=table(words),
            block=dict(
                name="backbones.blocks.PreNorm",
                attention=dict(name="backbones.attention.SelfAttention", heads=heads, scale=1.0),
                feed_forward=feed_forward,
            ),
            bias=bias(True),
            unroll=layers,
        ),
        decoder=dict(
            name="backbones.decoder.TransformerDecoder",
            num_layers=layers,
            embed=table(symbols),
            block=dict(
                name="backbones.decoder_blocks.PreNorm",
                attention=attention,
                cross_attention=attention,
                feed_forward=feed_forward,
            ),
            bias=bias(False),
            unroll=layers,
        ),
    )


def parameters(state: Mapping[str, np.ndarray], heads: int) -> dict[str, Any]:
    """The parameters of `spec`'s model.

    Args:
      state: the state dict of a T5ForConditionalGeneration with ReLU, as NumPy.
      heads: H.
    """
    words, width = state["shared.weight"].shape
    symbols = len(state["lm_head.weight"])
    first = "encoder.block.0.layer"
    config = dict(
        d_model=width,
        d_ff=len(state[f"{first}.1.DenseReluDense.wi.weight"]),
        d_kv=len(state[f"{first}.0.SelfAttention.q.weight"]) // heads,
        num_heads=heads,
        num_layers=1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.block.")),
        model_type="t5",
    )
    fields = Fields(config, "state")
    layout = names.Layout(
        (
            names.table(("shared.weight", "encoder.embed_tokens.weight"), "encoder/embed", words, width),
            names.table(("decoder.embed_tokens.weight", "lm_head.weight"), "decoder/embed", symbols, width),
            *t5.stack(fields, "encoder", "encoder/"),
            *t5.stack(fields, "decoder", "decoder/"),
        )
    )
    return names.read(layout, state, "state")
