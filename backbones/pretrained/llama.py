"""Llama and its kin: pre-norm decoders with rotary positions, RMSNorm and a gated feed-forward layer, read as
an encoder (causal, or made bidirectional) or as a language model.

    llama     Touvron et al. (2023), "LLaMA"; Grattafiori et al. (2024), "The Llama 3 Herd of Models"
    mistral   Jiang et al. (2023), "Mistral 7B", with a window over the last positions in all layers
    qwen2     Yang et al. (2024), "Qwen2 Technical Report", with a bias on queries, keys and values
    qwen3     Yang et al. (2025), "Qwen3 Technical Report", with a norm on the queries and keys of each head

Letters: D model width, F feed-forward width, H heads, G heads of keys and values, d width of a head, V
vocabulary.
"""

import functools
from typing import Any

from flax import linen as nn

from backbones import decoder_blocks, masks, norms
from backbones.attention import SelfAttention
from backbones.blocks import PreNorm
from backbones.cached_attention import CachedAttention
from backbones.decoder import TransformerDecoder
from backbones.embedding import TokenEmbedding
from backbones.encoder import TransformerEncoder
from backbones.pretrained.family import Decoder, Family, Options, no_segments
from backbones.pretrained.fields import Fields
from backbones.pretrained.names import Layout, Tensor, linear, norm, table
from backbones.pretrained.rope import rotary
from moe.feed_forward import Gated

# A buffer that older releases wrote, and heads.
_BUFFER = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
_HEADS = (r"lm_head\.weight", r"score\.weight")


def _encoder(fields: Fields, options: Options) -> nn.Module:
    no_segments(fields, options)
    causal = fields.flag("is_causal", True) if options.causal is None else options.causal
    return TransformerEncoder(
        block=PreNorm(SelfAttention(**_attention(fields, options)), **_block(fields)),
        visible=_visible(fields, causal=causal),
        **_stack(fields),
        **options.more,
    )


def _decoder(fields: Fields, options: Options) -> nn.Module:
    fields.only(is_causal=True)
    tied = fields.flag("tie_word_embeddings", False)
    return TransformerDecoder(
        block=decoder_blocks.PreNorm(CachedAttention(**_attention(fields, options)), **_block(fields)),
        visible=_visible(fields, causal=True),
        output=None if tied else TokenEmbedding(fields.count("vocab_size"), fields.count("hidden_size")),
        **_stack(fields),
        **options.more,
    )


def _stack(fields: Fields) -> dict[str, Any]:
    return dict(
        embed=TokenEmbedding(fields.count("vocab_size"), fields.count("hidden_size")),
        num_layers=fields.count("num_hidden_layers"),
        norm=_norm(fields),
    )


def _block(fields: Fields) -> dict[str, Any]:
    activation = fields.activation("hidden_act", "silu")
    width, use_bias = fields.count("intermediate_size"), _feed_forward_bias(fields)
    return dict(feed_forward=Gated(width, activation=activation, use_bias=use_bias), norm=_norm(fields))


def _norm(fields: Fields) -> nn.Module:
    return norms.RMSNorm(fields.number("rms_norm_eps", 1e-6))


def _attention(fields: Fields, options: Options) -> dict[str, Any]:
    heads, groups, width = _heads(fields)
    use_bias, out_bias = _biases(fields)
    return dict(
        heads=heads,
        key_value_heads=groups,
        head_width=width,
        rotate=rotary(fields, 10_000.0),
        use_bias=use_bias,
        out_bias=out_bias,
        head_norm=_norm(fields) if _normalizes_heads(fields) else None,
        dropout=options.rate(fields, "attention_dropout", 0.0),
    )


def _heads(fields: Fields) -> tuple[int, int, int]:
    """H, G and d."""
    model_type, heads = fields.get("model_type"), fields.count("num_attention_heads")
    # Where a config leaves these out, transformers has a number of its own for some; better to ask.
    if model_type == "llama" and not fields.has("num_key_value_heads"):
        groups = heads
    else:
        groups = fields.divisor("num_key_value_heads", of="num_attention_heads")
    width = fields.count("hidden_size")
    if not fields.has("head_dim") and (width % heads or model_type == "qwen3"):
        raise fields.wrong("head_dim", None, "an integer of at least 1")
    return heads, groups, fields.count("head_dim", width // heads)


def _biases(fields: Fields) -> tuple[bool, bool]:
    """Whether queries, keys and values have a bias, and whether the last product has."""
    if fields.get("model_type") == "qwen2":
        return True, False
    if fields.get("model_type") == "mistral":
        return False, False
    both = fields.flag("attention_bias", False)
    return both, both


def _feed_forward_bias(fields: Fields) -> bool:
    return fields.get("model_type") == "llama" and fields.flag("mlp_bias", False)


def _normalizes_heads(fields: Fields) -> bool:
    return fields.get("model_type") == "qwen3"


def _visible(fields: Fields, *, causal: bool) -> masks.Mask:
    """A window of w shows a position itself and the w - 1 before it or, bidirectional, w on both sides: so
    transformers has it."""
    shown, window = masks.causal if causal else masks.padding, _window(fields)
    if window is None:
        return shown
    before, after = (window - 1, 0) if causal else (window, window)
    return masks.both(shown, functools.partial(masks.window, before=before, after=after))


def _window(fields: Fields) -> int | None:
    """The window of all layers, or None. Raises PretrainedError where some have one and others not."""
    layers = fields.count("num_hidden_layers")
    kinds = set(fields.get("layer_types", []))
    if len(kinds) > 1:
        raise fields.wrong("layer_types", fields.get("layer_types"), "one type for all layers")
    if fields.get("model_type") == "llama":
        fields.only(layer_types=["full_attention"] * layers)
        return None
    if fields.get("model_type") == "mistral":
        has = not fields.null("sliding_window")
        kind = "sliding_attention" if has else "full_attention"
        fields.only(layer_types=[kind] * layers)
        return fields.count("sliding_window", 4096) if has else None
    if not fields.flag("use_sliding_window", False):
        fields.only(layer_types=["full_attention"] * layers)
        return None
    if kinds:
        return fields.count("sliding_window") if kinds == {"sliding_attention"} else None
    first = fields.get("max_window_layers", 28)
    if first == 0:
        return fields.count("sliding_window")
    if not isinstance(first, int) or first < layers:
        raise fields.wrong("max_window_layers", first, f"0, or at least num_hidden_layers, {layers}")
    return None


def _layout(fields: Fields) -> Layout:
    return Layout(_lines(fields), (_BUFFER, *_HEADS))


def _decoder_layout(fields: Fields) -> Layout:
    vocabulary, width = fields.count("vocab_size"), fields.count("hidden_size")
    if fields.flag("tie_word_embeddings", False):
        # Some checkpoints write the table a second time.
        return Layout(_lines(fields), (_BUFFER, r"lm_head\.weight"), prefix="model.")
    output = table("lm_head.weight", "output", vocabulary, width, prefixed=False)
    return Layout((*_lines(fields), output), (_BUFFER,), prefix="model.")


def _lines(fields: Fields) -> tuple[Tensor, ...]:
    width, hidden, layers = (
        fields.count(name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    heads, groups, head = _heads(fields)
    use_bias, out_bias = _biases(fields)
    layer, attention = "layers.{layer}", "block/attention"
    lines = [table("embed_tokens.weight", "embed", fields.count("vocab_size"), width)]
    for ours, theirs, number in (("query", "q", heads), ("key", "k", groups), ("value", "v", groups)):
        names = f"{layer}.self_attn.{theirs}_proj"
        lines += linear(names, f"{attention}/{ours}", number * head, width, layers, bias=use_bias)
    lines += linear(
        f"{layer}.self_attn.o_proj", f"{attention}/out", width, heads * head, layers, bias=out_bias
    )
    if _normalizes_heads(fields):
        for ours, theirs in (("query", "q"), ("key", "k")):
            lines += norm(f"{layer}.self_attn.{theirs}_norm", f"{attention}/{ours}_norm", head, layers)
    bias = _feed_forward_bias(fields)
    for ours, theirs in (("gate", "gate"), ("in", "up")):
        names = f"{layer}.mlp.{theirs}_proj"
        lines += linear(names, f"block/feed_forward/{ours}", hidden, width, layers, bias=bias)
    lines += linear(f"{layer}.mlp.down_proj", "block/feed_forward/out", width, hidden, layers, bias=bias)
    lines += norm(f"{layer}.input_layernorm", "block/attention_norm", width, layers)
    lines += norm(f"{layer}.post_attention_layernorm", "block/feed_forward_norm", width, layers)
    lines += norm("norm", "final_norm", width, None)
    return tuple(lines)


def _family(name: str) -> Family:
    decoder = Decoder(f"{name}ForCausalLM", _decoder, _decoder_layout)
    return Family(f"{name}Model", _encoder, _layout, decoder)


FAMILIES = {
    "llama": _family("Llama"),
    "mistral": _family("Mistral"),
    "qwen2": _family("Qwen2"),
    "qwen3": _family("Qwen3"),
}
