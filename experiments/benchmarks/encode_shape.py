"""Speed of encoding documents on the CPU with a Transformer of MiniLM's size, beside PyTorch.

Ours is `dual_encoder.encoding.Encoder`, as programs use it: tokens in, unit vectors out. The peer has the
same pre-norm layers and weights, in inference mode, as `nn.TransformerEncoderLayer` with its fast path and
written out with fused attention, each on the whole batch and on eighths of it; the fastest counts. All must
give the same vectors to 1e-4, or there is no report.

    make bench
    python -m experiments.benchmarks.encode_shape --json

Letters: N documents, L length, D width, H heads.
"""

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np

from corpora.tokens import TokenTable
from dual_encoder.encoding import Encoder
from experiments.benchmarks import harness
from training.build import build
from training.memory import keep_freed_memory

_TOLERANCE = 1e-4
_EPSILON = 1e-5
_SIZES = dict(
    layers=6, width=384, heads=12, hidden=1_536, vocabulary=30_522, documents=64, length=256, rounds=9
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(
        "experiments.benchmarks.encode_shape",
        "Encoding documents on the CPU: documents per second, ours beside PyTorch.",
        "python -m experiments.benchmarks.encode_shape --json",
    )
    for name, value in _SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    args = parser.parse_args(argv)
    for name in _SIZES:
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; at least 1 is needed")
    if args.width % args.heads:
        parser.error(f"--heads is {args.heads}; allowed: a divisor of --width ({args.width})")
    keep_freed_memory()  # for the peer too: it is one process
    jax.config.update("jax_platforms", "cpu")  # the peer runs there
    try:
        made = measure(**{name: getattr(args, name) for name in _SIZES})
    except harness.BenchmarkError as error:
        sys.exit(f"error: {error}")
    lines = [
        f"encoding {args.documents} documents of {args.length} tokens, {args.layers} layers of {args.width}, "
        f"on {made['device']}",
        f"ours {made['ours']:.1f} documents/s, {made['peer_name']} {made['peer']:.1f}: "
        f"ratio {made['ratio']:.2f}",
    ]
    harness.report(made, lines, as_json=args.json)


def measure(
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    vocabulary: int,
    documents: int,
    length: int,
    rounds: int,
) -> dict:
    """Checks that all give the same vectors, times them, and returns the record.

    Raises:
      harness.BenchmarkError: the peer is not installed, or its vectors differ.
    """
    (torch,) = harness.import_peers("torch")
    model = build(
        dict(
            name="dual_encoder.towers.tied",
            tower=tower_spec(layers, width, heads, hidden, vocabulary, length),
        )
    )
    rng = np.random.default_rng(0)
    tokens_NL = rng.integers(0, vocabulary, (documents, length)).astype(np.int32)
    one = {name: np.ones((1, 1), np.int32) for name in ("tokens", "mask", "segments")}
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0), one, one)["params"])
    # Off their initial values, so that no bias or scale could be left out unnoticed.
    params = jax.tree.map(lambda x: x + 0.02 * rng.standard_normal(x.shape, np.float32), params)

    table = TokenTable(
        tokens_NL.reshape(-1),
        np.zeros(tokens_NL.size, np.uint8),
        np.arange(documents + 1) * length,
        pad_id=0,
    )
    encoder = Encoder(model)
    placed = encoder.place({"params": params})
    callables = {"retrievax": lambda number: encoder.documents(placed, table, length)}
    eighth = -(-documents // 8)
    peers = {}
    for name, made in (
        ("torch TransformerEncoderLayer", layer_peer(torch, params, heads)),
        ("torch fused attention", written_out_peer(torch, params, heads)),
    ):
        for rows in sorted({eighth, documents}):
            peers[f"{name}, {rows} at a time"] = in_batches(torch, made, tokens_NL, rows)
    for name, peer in peers.items():
        check(callables["retrievax"](0), peer(0), name)

    seconds = harness.interleaved_medians(callables | peers, rounds=rounds)
    rates = {name: documents / median for name, median in seconds.items()}
    peer = max(peers, key=rates.get)
    return harness.record(
        name="encode_shape",
        ours=rates["retrievax"],
        peer=rates[peer],
        better="higher",
        unit="documents/s",
        peer_name=peer,
        rates=rates,
        layers=layers,
        width=width,
        heads=heads,
        hidden=hidden,
        vocabulary=vocabulary,
        documents=documents,
        length=length,
        rounds=rounds,
        versions=harness.versions("jax", "flax", "torch"),
    )


def check(vectors_ND, peer_vectors_ND, name: str) -> None:
    """Raises BenchmarkError unless the vectors agree to 1e-4."""
    difference = np.max(np.abs(np.asarray(vectors_ND) - np.asarray(peer_vectors_ND)))
    if not difference <= _TOLERANCE:
        raise harness.BenchmarkError(f"the vectors of {name} differ by {difference:.1e}; allowed: 1e-4")


def tower_spec(layers: int, width: int, heads: int, hidden: int, vocabulary: int, length: int) -> dict:
    """The tower as a config spells it."""
    norm = dict(name="backbones.norms.LayerNorm", epsilon=_EPSILON)
    encoder = dict(
        name="backbones.encoder.TransformerEncoder",
        num_layers=layers,
        embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=vocabulary, width=width),
        position=dict(name="backbones.positions.LearnedPositions", max_length=length),
        block=dict(
            name="backbones.blocks.PreNorm",
            attention=dict(name="backbones.attention.SelfAttention", heads=heads, use_bias=True),
            feed_forward=dict(
                name="moe.feed_forward.Dense",
                width=hidden,
                use_bias=True,
                activation=dict(name="jax.nn.gelu", approximate=False),
            ),
            norm=norm,
        ),
        norm=norm,
    )
    return dict(
        name="dual_encoder.towers.Tower", encoder=encoder, pooler=dict(name="dual_encoder.poolers.mean")
    )


def in_batches(torch: ModuleType, encode: Callable, tokens_NL: np.ndarray, rows: int) -> Callable:
    """Returns a function of the round's number: all vectors [N, D], `rows` documents at a time."""
    tokens = torch.from_numpy(tokens_NL).long()

    def run(number: int) -> np.ndarray:
        del number
        with torch.inference_mode():
            return torch.cat([encode(part) for part in tokens.split(rows)]).numpy()

    return run


def layer_peer(torch: ModuleType, params: Any, heads: int) -> Callable:
    """PyTorch's own layers: tokens [N, L] to vectors [N, D]."""
    layers, table, positions, final = peer_weights(torch, params)
    stack = []
    for weights in layers:
        layer = torch.nn.TransformerEncoderLayer(
            table.shape[1],
            heads,
            dim_feedforward=len(weights["linear1.weight"]),
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=_EPSILON,
            batch_first=True,
            norm_first=True,
        )
        layer.load_state_dict(weights)
        stack.append(layer.eval())

    def encode(tokens_NL):
        x_NLD = torch.nn.functional.embedding(tokens_NL, table) + positions
        for layer in stack:
            x_NLD = layer(x_NLD)
        return pooled(torch, x_NLD, final)

    return encode


def written_out_peer(torch: ModuleType, params: Any, heads: int) -> Callable:
    """The same with `scaled_dot_product_attention`."""
    layers, table, positions, final = peer_weights(torch, params)
    functional = torch.nn.functional

    def encode(tokens_NL):
        x_NLD = functional.embedding(tokens_NL, table) + positions
        batch, length, width = x_NLD.shape

        def norm(x, layer, name):
            return functional.layer_norm(
                x, (width,), layer[f"{name}.weight"], layer[f"{name}.bias"], _EPSILON
            )

        def linear(x, layer, name):
            return functional.linear(x, layer[f"{name}.weight"], layer[f"{name}.bias"])

        for layer in layers:
            y_NLD = norm(x_NLD, layer, "norm1")
            qkv = functional.linear(y_NLD, layer["self_attn.in_proj_weight"], layer["self_attn.in_proj_bias"])
            q, k, v = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            y_NHLd = functional.scaled_dot_product_attention(q, k, v)
            y_NLD = y_NHLd.transpose(1, 2).reshape(batch, length, width)
            x_NLD = x_NLD + linear(y_NLD, layer, "self_attn.out_proj")
            hidden = functional.gelu(linear(norm(x_NLD, layer, "norm2"), layer, "linear1"))
            x_NLD = x_NLD + linear(hidden, layer, "linear2")
        return pooled(torch, x_NLD, final)

    return encode


def pooled(torch: ModuleType, x_NLD, final: dict):
    """Final norm, mean over positions, length 1."""
    functional = torch.nn.functional
    x_NLD = functional.layer_norm(x_NLD, x_NLD.shape[-1:], final["scale"], final["bias"], _EPSILON)
    return functional.normalize(x_NLD.mean(dim=1), dim=-1)


def peer_weights(torch: ModuleType, params: Any) -> tuple[list[dict], Any, Any, dict]:
    """Our parameters as PyTorch's: layers by the names of `nn.TransformerEncoderLayer`, the table, the
    positions, and the final norm."""
    encoder = params["query"]["encoder"]
    block = encoder["block"]
    attention, feed_forward = block["attention"], block["feed_forward"]
    tensor = lambda array: torch.tensor(np.ascontiguousarray(array))
    join = lambda leaf: np.concatenate([attention[name][leaf] for name in ("query", "key", "value")], axis=-1)
    kernels = {
        "self_attn.in_proj_weight": join("kernel"),
        "self_attn.out_proj.weight": attention["out"]["kernel"],
        "linear1.weight": feed_forward["in"]["kernel"],
        "linear2.weight": feed_forward["out"]["kernel"],
    }
    vectors = {
        "self_attn.in_proj_bias": join("bias"),
        "self_attn.out_proj.bias": attention["out"]["bias"],
        "linear1.bias": feed_forward["in"]["bias"],
        "linear2.bias": feed_forward["out"]["bias"],
        "norm1.weight": block["attention_norm"]["scale"],
        "norm1.bias": block["attention_norm"]["bias"],
        "norm2.weight": block["feed_forward_norm"]["scale"],
        "norm2.bias": block["feed_forward_norm"]["bias"],
    }
    layers = [
        {name: tensor(stacked[n].T) for name, stacked in kernels.items()}
        | {name: tensor(stacked[n]) for name, stacked in vectors.items()}
        for n in range(len(kernels["linear1.weight"]))
    ]
    final = {name: tensor(array) for name, array in encoder["final_norm"].items()}
    return layers, tensor(encoder["embed"]["table"]), tensor(encoder["position"]["table"]), final


if __name__ == "__main__":
    main()
