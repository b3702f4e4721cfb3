"""BERT and its kin: post-norm encoders with learned positions and a norm behind the embedding.

    bert             Devlin et al. (2019), "BERT"; so MiniLM, E5, BGE, GTE and Contriever
    roberta          Liu et al. (2019), "RoBERTa"; xlm-roberta, Conneau et al. (2020), "Unsupervised
                     Cross-lingual Representation Learning at Scale"; camembert
    distilbert       Sanh et al. (2019), "DistilBERT, a distilled version of BERT"
    mpnet            Song et al. (2020), "MPNet: Masked and Permuted Pre-training for Language Understanding",
                     with relative positions besides

They differ in names and in what is embedded. Every token has type 0 unless the segments of the batch are
asked for: published encoders of single texts know no other.

Letters: D model width, F feed-forward width, H heads, V vocabulary, Y layers.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from backbones import norms, positions
from backbones.attention import SelfAttention
from backbones.blocks import PostNorm
from backbones.embedding import TokenEmbedding
from backbones.encoder import TransformerEncoder
from backbones.pretrained.family import Family, Options, never_causal, no_segments
from backbones.pretrained.fields import Fields
from backbones.pretrained.names import Layout, Tensor, linear, norm, table
from backbones.relative import RelativeBias
from moe.feed_forward import Dense

# Heads, and buffers that older releases wrote.
_LEFT_OUT = (
    r"pooler\.dense\.(weight|bias)",
    r"embeddings\.(position_ids|token_type_ids)",
    r"cls\..*",
    r"lm_head\..*",
    r"classifier\..*",
    r"qa_outputs\..*",
)
_BUCKETS = 32  # of MPNet's relative positions
_ATTENTION = ("query", "key", "value", "out")


# D, F and Y in config.json, and where each part lies in a layer; `attention` in the order of `_ATTENTION`.
_BERT = dict(
    sizes=("hidden_size", "intermediate_size", "num_hidden_layers"),
    layer="encoder.layer.{layer}",
    attention=(
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ),
    attention_norm="attention.output.LayerNorm",
    hidden="intermediate.dense",
    out="output.dense",
    feed_forward_norm="output.LayerNorm",
)
_DISTILBERT = dict(
    sizes=("dim", "hidden_dim", "n_layers"),
    layer="transformer.layer.{layer}",
    attention=("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
    attention_norm="sa_layer_norm",
    hidden="ffn.lin1",
    out="ffn.lin2",
    feed_forward_norm="output_layer_norm",
)
_MPNET = _BERT | dict(
    attention=("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
    attention_norm="attention.LayerNorm",
)


def _bert_encoder(fields: Fields, options: Options) -> nn.Module:
    fields.only(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    return _encoder(fields, options, positions.LearnedPositions(fields.count("max_position_embeddings")))


def _roberta_encoder(fields: Fields, options: Options) -> nn.Module:
    fields.only(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    return _encoder(fields, options, _after_padding(fields, _padding(fields)))


def _mpnet_encoder(fields: Fields, options: Options) -> nn.Module:
    no_segments(fields, options)
    fields.only(relative_attention_num_buckets=_BUCKETS)  # transformers counts with 32 whatever it says
    bias = RelativeBias(fields.count("num_attention_heads"), num_buckets=_BUCKETS)
    return _encoder(fields, options, _after_padding(fields, 1), types=False, bias=bias)


def _distilbert_encoder(fields: Fields, options: Options) -> nn.Module:
    no_segments(fields, options)
    never_causal(fields, options)
    dropout = options.rate(fields, "dropout", 0.1)
    return TransformerEncoder(
        embed=TokenEmbedding(fields.count("vocab_size"), fields.count("dim")),
        position=_then_norm(
            positions.LearnedPositions(fields.count("max_position_embeddings")), norms.LayerNorm(1e-12)
        ),
        block=PostNorm(
            SelfAttention(
                fields.divisor("n_heads", of="dim"),
                use_bias=True,
                dropout=options.rate(fields, "attention_dropout", 0.1),
            ),
            Dense(
                fields.count("hidden_dim"),
                activation=fields.activation("activation", "gelu"),
                use_bias=True,
                dropout=0.0,
            ),
            norm=norms.LayerNorm(1e-12),
            dropout=dropout,
        ),
        num_layers=fields.count("n_layers"),
        norm=None,
        dropout=dropout,
        **options.more,
    )


def _encoder(
    fields: Fields,
    options: Options,
    position: nn.Module,
    *,
    types: bool = True,
    bias: nn.Module | None = None,
) -> nn.Module:
    never_causal(fields, options)
    layer_norm = norms.LayerNorm(fields.number("layer_norm_eps", 1e-12))
    if types:
        always = None if options.segments else 0
        segments = positions.LearnedSegments(fields.count("type_vocab_size"), always=always)
        position = positions.InTurn(position, segments)
    dropout = options.rate(fields, "hidden_dropout_prob", 0.1)
    return TransformerEncoder(
        embed=TokenEmbedding(fields.count("vocab_size"), fields.count("hidden_size")),
        position=_then_norm(position, layer_norm),
        block=PostNorm(
            SelfAttention(
                fields.divisor("num_attention_heads", of="hidden_size"),
                use_bias=True,
                dropout=options.rate(fields, "attention_probs_dropout_prob", 0.1),
            ),
            Dense(
                fields.count("intermediate_size"),
                activation=fields.activation("hidden_act", "gelu"),
                use_bias=True,
            ),
            norm=layer_norm,
            dropout=dropout,
        ),
        num_layers=fields.count("num_hidden_layers"),
        norm=None,
        bias=bias,
        dropout=dropout,
        **options.more,
    )


def _then_norm(position: nn.Module, layer_norm: nn.Module) -> nn.Module:
    # A copy: one instance in two places would be one module.
    return positions.InTurn(position, positions.Normalized(layer_norm.clone()))


def _padding(fields: Fields) -> int:
    padding = fields.get("pad_token_id", 1)
    if not isinstance(padding, int) or padding < 0:
        raise fields.wrong("pad_token_id", padding, "an integer of at least 0")
    return padding


def _after_padding(fields: Fields, padding: int) -> nn.Module:
    """Positions that are counted from the row after that of padding, as in fairseq."""
    rows = fields.count("max_position_embeddings")
    if rows <= padding + 1:
        raise fields.wrong("max_position_embeddings", rows, f"more than {padding + 1}")
    return positions.LearnedPositions(rows - padding - 1, first=padding + 1)


def _bert_layout(fields: Fields) -> Layout:
    return _layout(fields, _BERT, place="position/first/first", types=True)


def _mpnet_layout(fields: Fields) -> Layout:
    heads = fields.count("num_attention_heads")
    relative = table("encoder.relative_attention_bias.weight", "bias", _BUCKETS, heads)
    return _layout(fields, _MPNET, place="position/first", more=(relative,))


def _distilbert_layout(fields: Fields) -> Layout:
    heads = (r"vocab_\w+\.(weight|bias)", r"pre_classifier\.(weight|bias)")
    return _layout(fields, _DISTILBERT, place="position/first", left_out=heads)


def _layout(
    fields: Fields,
    parts: Mapping[str, Any],
    *,
    place: str,
    types: bool = False,
    more: tuple[Tensor, ...] = (),
    left_out: tuple[str, ...] = (),
) -> Layout:
    """The table of an encoder.

    Args:
      fields: of config.json.
      parts: what its sizes are called, and where each part lies in a layer.
      place: where our positions are.
      types: whether there are token types.
      more: further lines.
      left_out: more tensors that may be there.
    """
    width, hidden, layers = (fields.count(name) for name in parts["sizes"])
    words, places = fields.count("vocab_size"), fields.count("max_position_embeddings")
    lines = [
        table("embeddings.word_embeddings.weight", "embed", words, width),
        table("embeddings.position_embeddings.weight", place, places, width),
        *norm("embeddings.LayerNorm", "position/second/norm", width, None, bias=True),
    ]
    if types:
        kinds = fields.count("type_vocab_size")
        lines.append(table("embeddings.token_type_embeddings.weight", "position/first/second", kinds, width))
    within = lambda part: f"{parts['layer']}.{part}"
    for ours, theirs in zip(_ATTENTION, parts["attention"], strict=True):
        lines += linear(within(theirs), f"block/attention/{ours}", width, width, layers, bias=True)
    for part in ("attention_norm", "feed_forward_norm"):
        lines += norm(within(parts[part]), f"block/{part}", width, layers, bias=True)
    lines += linear(within(parts["hidden"]), "block/feed_forward/in", hidden, width, layers, bias=True)
    lines += linear(within(parts["out"]), "block/feed_forward/out", width, hidden, layers, bias=True)
    return Layout((*lines, *more), (*_LEFT_OUT, *left_out))


FAMILIES = {
    "bert": Family("BertModel", _bert_encoder, _bert_layout),
    "roberta": Family("RobertaModel", _roberta_encoder, _bert_layout),
    "xlm-roberta": Family("XLMRobertaModel", _roberta_encoder, _bert_layout),
    "camembert": Family("CamembertModel", _roberta_encoder, _bert_layout),
    "distilbert": Family("DistilBertModel", _distilbert_encoder, _distilbert_layout),
    "mpnet": Family("MPNetModel", _mpnet_encoder, _mpnet_layout),
}
