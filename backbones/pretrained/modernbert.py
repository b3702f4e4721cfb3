"""ModernBERT: Warner et al. (2024), "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder for
Fast, Memory Efficient, and Long Context Finetuning and Inference". The layers are `backbones.alternating`.

Queries, keys and values are one product of theirs and three of ours, gate and input likewise one and two.

Letters: D model width, F feed-forward width, Y layers.
"""

from flax import linen as nn

from backbones import norms, positions
from backbones.alternating import AlternatingPreNorm
from backbones.attention import SelfAttention
from backbones.embedding import TokenEmbedding
from backbones.encoder import TransformerEncoder
from backbones.pretrained.family import Family, Options, never_causal, no_segments
from backbones.pretrained.fields import Fields
from backbones.pretrained.names import Layout, Tensor, linear, norm, table
from backbones.pretrained.rope import scaling_of
from moe.feed_forward import Gated

_WIDE, _LOCAL = "full_attention", "sliding_attention"
_LEFT_OUT = (r"head\.(dense|norm)\.(weight|bias)", r"decoder\.(weight|bias)", r"classifier\.(weight|bias)")


def _encoder(fields: Fields, options: Options) -> nn.Module:
    never_causal(fields, options)
    no_segments(fields, options)
    layer_norm = norms.LayerNorm(fields.number("norm_eps", 1e-5), use_bias=fields.flag("norm_bias", False))
    base, local_base = _bases(fields)
    return TransformerEncoder(
        embed=TokenEmbedding(fields.count("vocab_size"), fields.count("hidden_size")),
        position=positions.Normalized(layer_norm.clone()),
        block=AlternatingPreNorm(
            SelfAttention(
                fields.divisor("num_attention_heads", of="hidden_size"),
                use_bias=fields.flag("attention_bias", False),
                dropout=options.rate(fields, "attention_dropout", 0.0),
            ),
            Gated(
                fields.count("intermediate_size"),
                activation=fields.activation("hidden_activation", "gelu"),
                use_bias=fields.flag("mlp_bias", False),
            ),
            norm=layer_norm.clone(),
            dropout=options.rate(fields, "mlp_dropout", 0.0),
            every=_every(fields),
            window=fields.count("local_attention", 128) // 2,
            base=base,
            local_base=local_base,
        ),
        num_layers=fields.count("num_hidden_layers"),
        norm=layer_norm,
        dropout=options.rate(fields, "embedding_dropout", 0.0),
        **options.more,
    )


def _every(fields: Fields) -> int:
    """Of how many layers the first is wide; from the older field, or from the newer list of all layers."""
    if not fields.has("layer_types"):
        return fields.count("global_attn_every_n_layers", 3)
    kinds, layers = fields.get("layer_types"), fields.count("num_hidden_layers")
    every = next((n for n in range(1, layers) if kinds[n : n + 1] == [_WIDE]), layers)
    if kinds != [_LOCAL if number % every else _WIDE for number in range(layers)]:
        raise fields.wrong(
            "layer_types", kinds, f"{_WIDE!r} for every n-th of {layers} from the first, {_LOCAL!r} else"
        )
    return every


def _bases(fields: Fields) -> tuple[float, float]:
    """The bases of wide and of local layers, likewise. Raises PretrainedError where frequencies are
    scaled."""
    fields.only(rope_scaling=None)
    if not fields.has("rope_parameters"):
        return fields.number("global_rope_theta", 160_000.0), fields.number("local_rope_theta", 10_000.0)
    found = fields.within("rope_parameters")
    bases = []
    for kind, default in ((_WIDE, 160_000.0), (_LOCAL, 10_000.0)):
        one = found.within(kind)
        if scaling_of(one, fields) is not None:
            raise one.wrong("rope_type", one.get("rope_type"), "'default'")
        bases.append(one.number("rope_theta", default))
    return bases[0], bases[1]


def _layout(fields: Fields) -> Layout:
    width, hidden, layers = (
        fields.count(name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    norm_bias = fields.flag("norm_bias", False)
    layer, attention = "layers.{layer}", "block/attention"
    kernels = tuple(f"{attention}/{name}" for name in ("query", "key", "value"))
    halves = ("block/feed_forward/gate", "block/feed_forward/in")
    attention_bias, mlp_bias = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    return Layout(
        (
            table("embeddings.tok_embeddings.weight", "embed", fields.count("vocab_size"), width),
            *norm("embeddings.norm", "position/norm", width, None, bias=norm_bias),
            *_fused(f"{layer}.attn.Wqkv", kernels, 3 * width, width, layers, bias=attention_bias),
            *linear(f"{layer}.attn.Wo", f"{attention}/out", width, width, layers, bias=attention_bias),
            *norm(f"{layer}.attn_norm", "block/attention_norm", width, layers, bias=norm_bias, first=1),
            *norm(f"{layer}.mlp_norm", "block/feed_forward_norm", width, layers, bias=norm_bias),
            *_fused(f"{layer}.mlp.Wi", halves, 2 * hidden, width, layers, bias=mlp_bias),
            *linear(f"{layer}.mlp.Wo", "block/feed_forward/out", width, hidden, layers, bias=mlp_bias),
            *norm("final_norm", "final_norm", width, None, bias=norm_bias),
        ),
        _LEFT_OUT,
    )


def _fused(
    names: str, ours: tuple[str, ...], outputs: int, inputs: int, layers: int, *, bias: bool
) -> tuple[Tensor, ...]:
    """The lines of one linear layer of theirs that is several of ours."""
    kernels, biases = (tuple(f"{path}/{leaf}" for path in ours) for leaf in ("kernel", "bias"))
    lines = (
        Tensor((f"{names}.weight",), (outputs, inputs), kernels, layers, transpose=True),
        Tensor((f"{names}.bias",), (outputs,), biases, layers),
    )
    return lines if bias else lines[:1]


FAMILIES = {"modernbert": Family("ModernBertModel", _encoder, _layout)}
