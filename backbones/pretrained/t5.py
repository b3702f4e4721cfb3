"""T5 and mT5: pre-norm with RMSNorm, no biases, and one table of relative positions for all layers of a
stack; the encoder alone, or with its decoder.

    t5     Raffel et al. (2020), "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
           Transformer"; and the version 1.1, with a gated feed-forward layer and a second table for the
           output
    mt5    Xue et al. (2021), "mT5: A Massively Multilingual Pre-trained Text-to-Text Transformer"

T5 does not divide attention scores by sqrt(d). The first version divides the decoder's output by sqrt(D)
before the tied table: here the decoder's final norm does.

Letters: D model width, F feed-forward width, H heads, d width of a head, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from backbones import decoder_blocks, norms
from backbones.attention import SelfAttention
from backbones.blocks import PreNorm
from backbones.cached_attention import CachedAttention
from backbones.decoder import TransformerDecoder
from backbones.embedding import TokenEmbedding
from backbones.encoder import TransformerEncoder
from backbones.pretrained.family import Decoder, Family, Options, never_causal, no_segments
from backbones.pretrained.fields import ACTIVATIONS, Fields
from backbones.pretrained.names import Layout, Tensor, linear, norm, table
from backbones.relative import RelativeBias
from moe.feed_forward import Dense, Gated

# Our parts of a layer -> where they lie in the layer of theirs, in order.
_ENCODER = {"attention": "SelfAttention", "feed_forward": "DenseReluDense"}
_DECODER = {
    "attention": "SelfAttention",
    "cross_attention": "EncDecAttention",
    "feed_forward": "DenseReluDense",
}
_KERNELS = {"query": "q", "key": "k", "value": "v", "out": "o"}
# The first releases wrote it, though nothing reads it.
_UNREAD = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
_GATED = "gated-"


def _encoder(fields: Fields, options: Options) -> nn.Module:
    never_causal(fields, options)
    no_segments(fields, options)
    return TransformerEncoder(
        block=PreNorm(SelfAttention(**_attention(fields, options)), **_block(fields, options)),
        **_stack(fields, options, "num_layers", bidirectional=True),
    )


def _encoder_decoder(fields: Fields, options: Options) -> tuple[TransformerEncoder, TransformerDecoder]:
    """They share one table: a model that holds both has it under the encoder."""
    fields.only(decoder_start_token_id=0)
    encoder = _encoder(fields, options)
    attention = _attention(fields, options)
    layers = "num_decoder_layers" if fields.has("num_decoder_layers") else "num_layers"
    decoder = TransformerDecoder(
        block=decoder_blocks.PreNorm(
            CachedAttention(**attention),
            cross_attention=CachedAttention(**attention),
            **_block(fields, options),
        ),
        output=None if scales_output(fields) else encoder.embed.clone(),
        **{**_stack(fields, options, layers, bidirectional=False), "embed": encoder.embed},
    )
    return encoder, decoder


def _stack(fields: Fields, options: Options, layers: str, *, bidirectional: bool) -> dict[str, Any]:
    return dict(
        embed=TokenEmbedding(fields.count("vocab_size"), fields.count("d_model")),
        num_layers=fields.count(layers),
        norm=_norm(fields),
        bias=RelativeBias(
            fields.count("num_heads"),
            num_buckets=fields.count("relative_attention_num_buckets", 32),
            max_distance=fields.count("relative_attention_max_distance", 128),
            bidirectional=bidirectional,
        ),
        dropout=options.rate(fields, "dropout_rate", 0.1),
        **options.more,
    )


def _attention(fields: Fields, options: Options) -> dict[str, Any]:
    dropout = options.rate(fields, "dropout_rate", 0.1)
    return dict(heads=fields.count("num_heads"), head_width=fields.count("d_kv"), scale=1.0, dropout=dropout)


def _block(fields: Fields, options: Options) -> dict[str, Any]:
    dropout = options.rate(fields, "dropout_rate", 0.1)
    gated, activation = _activation(fields)
    kind = Gated if gated else Dense
    return dict(
        feed_forward=kind(fields.count("d_ff"), activation=activation, dropout=dropout),
        norm=_norm(fields),
        dropout=dropout,
    )


def _norm(fields: Fields) -> nn.Module:
    return norms.RMSNorm(fields.number("layer_norm_epsilon", 1e-6))


def _activation(fields: Fields) -> tuple[bool, Callable[[jax.Array], jax.Array]]:
    """Whether the feed-forward layer is gated, and its function."""
    known = [prefix + name for prefix in ("", _GATED) for name in ACTIVATIONS]
    found = fields.one_of("feed_forward_proj", known, "gated-gelu" if _is_mt5(fields) else "relu")
    gated, name = found.startswith(_GATED), found.removeprefix(_GATED)
    name = "gelu_new" if found == "gated-gelu" else name  # transformers' exception, for T5 1.1 was trained so
    fields.only(dense_act_fn=name, is_gated_act=gated)
    return gated, ACTIVATIONS[name]


def _is_mt5(fields: Fields) -> bool:
    return fields.get("model_type") == "mt5"


def scales_output(fields: Fields) -> bool:
    """Whether the decoder's output is divided by sqrt(D) and scored by the table of the tokens: the first
    version.

    Newer releases of transformers say so in `scale_decoder_outputs`, since they write `tie_word_embeddings`
    as true for every T5.
    """
    if _is_mt5(fields):
        return False
    return fields.flag("scale_decoder_outputs", fields.flag("tie_word_embeddings", True))


def _encoder_layout(fields: Fields) -> Layout:
    words = _words(fields, ("shared.weight", "encoder.embed_tokens.weight"), "embed")
    return Layout((words, *stack(fields, "encoder", "")), (r"decoder\..*", r"lm_head\.weight"))


def _encoder_decoder_layout(fields: Fields) -> Layout:
    tied = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    both = (*stack(fields, "encoder", "encoder/"), *stack(fields, "decoder", "decoder/"))
    if scales_output(fields):
        words = _words(fields, (*tied, "lm_head.weight"), "encoder/embed")
        return Layout((words, *both), (_UNREAD,))
    # Newer releases of transformers tie the tables when they train such a model, and then write one.
    output = _words(fields, ("lm_head.weight",), "decoder/output", otherwise=tied)
    return Layout((_words(fields, tied, "encoder/embed"), *both, output), (_UNREAD,))


def _words(fields: Fields, names: tuple[str, ...], ours: str, **more: Any) -> Tensor:
    return table(names, ours, fields.count("vocab_size"), fields.count("d_model"), **more)


def stack(fields: Fields, side: str, ours: str) -> tuple[Tensor, ...]:
    """The lines of a stack of layers, without its table of tokens.

    Args:
      fields: of config.json.
      side: "encoder" or "decoder".
      ours: what stands before our paths, such as "decoder/".
    """
    decodes = side == "decoder"
    width, hidden, inner = (
        fields.count("d_model"),
        fields.count("d_ff"),
        fields.count("num_heads") * fields.count("d_kv"),
    )
    layers = fields.count("num_layers")
    layers = fields.count("num_decoder_layers", layers) if decodes else layers
    products = {"gate": "wi_0", "in": "wi_1"} if _activation(fields)[0] else {"in": "wi"}
    lines: list[Tensor] = []
    for number, (part, place) in enumerate((_DECODER if decodes else _ENCODER).items()):
        names, path = f"{side}.block.{{layer}}.layer.{number}", f"{ours}block/{part}"
        lines += norm(f"{names}.layer_norm", f"{path}_norm", width, layers)
        if part == "feed_forward":
            for mine, theirs in products.items():
                lines += linear(f"{names}.{place}.{theirs}", f"{path}/{mine}", hidden, width, layers)
            lines += linear(f"{names}.{place}.wo", f"{path}/out", width, hidden, layers)
            continue
        for mine, theirs in _KERNELS.items():
            sizes = (width, inner) if mine == "out" else (inner, width)
            lines += linear(f"{names}.{place}.{theirs}", f"{path}/{mine}", *sizes, layers)
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    buckets = fields.count("relative_attention_num_buckets", 32)
    lines.append(table(bias, f"{ours}bias", buckets, fields.count("num_heads")))
    scale = width**-0.5 if decodes and scales_output(fields) else 1.0
    lines += norm(f"{side}.final_layer_norm", f"{ours}final_norm", width, None, scale=scale)
    return tuple(lines)


def _family(name: str) -> Family:
    both = Decoder(f"{name}ForConditionalGeneration", _encoder_decoder, _encoder_decoder_layout)
    return Family(f"{name}EncoderModel", _encoder, _encoder_layout, encoder_decoder=both)


FAMILIES = {"t5": _family("T5"), "mt5": _family("MT5")}
