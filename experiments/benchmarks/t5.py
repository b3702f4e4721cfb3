"""T5 of the original shape (Raffel et al., 2020, "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer") as our encoder-decoder, from weights under the names of Hugging Face.

Where the two differ in form, the weights make up for it: T5 does not divide attention scores by sqrt(d), so
its query kernels are multiplied by it; it divides the decoder's output by sqrt(D) before the tied table, so
the decoder's final norm is. Pre-norm with RMSNorm, no biases, ReLU, one table of relative positions for all
layers of a stack: all this we have as it is.

Letters: D model width, F feed-forward width, H heads, d width of a head, Y layers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Our name of each part of a layer -> where it lies in the layer of Hugging Face.
_ENCODER = {"attention": "layer.0.SelfAttention", "feed_forward": "layer.1.DenseReluDense"}
_DECODER = {
    "attention": "layer.0.SelfAttention",
    "cross_attention": "layer.1.EncDecAttention",
    "feed_forward": "layer.2.DenseReluDense",
}
_KERNELS = {"query": "q", "key": "k", "value": "v", "out": "o"}


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
    attention = dict(name="backbones.cached_attention.CachedAttention", heads=heads)
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
                attention=dict(name="backbones.attention.SelfAttention", heads=heads),
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
    width = state["shared.weight"].shape[1]
    decoder = _stack(state, "decoder", _DECODER, heads)
    decoder["final_norm"]["scale"] = decoder["final_norm"]["scale"] * width**-0.5
    return {"encoder": _stack(state, "encoder", _ENCODER, heads), "decoder": decoder}


def _stack(state: Mapping[str, np.ndarray], side: str, parts: Mapping[str, str], heads: int) -> dict:
    """The parameters of the encoder or the decoder."""
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith(f"{side}.block."))
    every = lambda name: np.stack([state[f"{side}.block.{layer}.{name}"] for layer in range(layers)])
    kernel = lambda name: {"kernel": np.ascontiguousarray(np.swapaxes(every(f"{name}.weight"), 1, 2))}

    block: dict[str, Any] = {}
    for number, (part, place) in enumerate(parts.items()):
        block[f"{part}_norm"] = {"scale": every(f"layer.{number}.layer_norm.weight")}
        if part == "feed_forward":
            block[part] = {"in": kernel(f"{place}.wi"), "out": kernel(f"{place}.wo")}
            continue
        block[part] = {ours: kernel(f"{place}.{theirs}") for ours, theirs in _KERNELS.items()}
        query_YDD = block[part]["query"]["kernel"]
        block[part]["query"]["kernel"] = query_YDD * np.float32((query_YDD.shape[-1] // heads) ** 0.5)
    bias_RH = state[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    return {
        "embed": {"table": state[f"{side}.embed_tokens.weight"]},
        "block": block,
        "bias": {"table": bias_RH},
        "final_norm": {"scale": state[f"{side}.final_layer_norm.weight"]},
    }
