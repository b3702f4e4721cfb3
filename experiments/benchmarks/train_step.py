"""Speed of one contrastive training step on the CPU beside the same step in PyTorch.

Both train the Transformer of `configs/dual_encoder/parts.py` (pre-norm, rotary positions, SwiGLU; one tower
for queries and documents) on the same batch, from the same parameters, with AdamW: InfoNCE in both
directions over the batch, with a learned temperature. The losses of five steps must agree to 1e-4, or there
is no report. PyTorch uses its fused attention, and whichever of its AdamW implementations is faster.

    make bench
    python -m experiments.benchmarks.train_step --json

Letters: B queries and documents of a batch, L length, D width, H heads, d width of a head.
"""

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
import optax

from dual_encoder.task import Contrastive
from experiments.benchmarks import harness
from training.build import build
from training.memory import keep_freed_memory
from training.step import make_step
from training.task import begin

_STEPS_CHECKED = 5
_TOLERANCE = 1e-4
_RATE, _DECAY = 1e-4, 0.01
_TEMPERATURE, _MIN_TEMPERATURE = 0.05, 0.01


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(
        "experiments.benchmarks.train_step",
        "A contrastive training step on the CPU: examples per second, ours beside PyTorch.",
        "python -m experiments.benchmarks.train_step --json",
    )
    sizes = dict(
        layers=4,
        width=256,
        heads=4,
        vocabulary=16_000,
        batch=128,
        query_length=32,
        document_length=128,
        rounds=9,
    )
    for name, value in sizes.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=value, help="default: %(default)s"
        )
    args = parser.parse_args(argv)
    for name in sizes:
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; at least 1 is needed")
    if args.width % args.heads or args.width // args.heads % 2:
        parser.error(f"--heads is {args.heads}; allowed: a divisor of --width ({args.width}) into even parts")
    keep_freed_memory()  # for the peer too: it is one process
    jax.config.update("jax_platforms", "cpu")  # the peer runs there
    try:
        made = measure(**{name: getattr(args, name) for name in sizes})
    except harness.BenchmarkError as error:
        sys.exit(f"error: {error}")
    lines = [
        f"contrastive training step, {args.layers} layers of {args.width}, batches of {args.batch} queries "
        f"of {args.query_length} and documents of {args.document_length} tokens, on {made['device']}",
        f"ours {made['ours']:.1f} examples/s, {made['peer_name']} {made['peer']:.1f}: "
        f"ratio {made['ratio']:.2f}; losses of {_STEPS_CHECKED} steps agree to {made['loss_difference']:.0e}",
    ]
    harness.report(made, lines, as_json=args.json)


def measure(
    layers: int,
    width: int,
    heads: int,
    vocabulary: int,
    batch: int,
    query_length: int,
    document_length: int,
    rounds: int,
) -> dict:
    """Checks that the losses agree, times all, and returns the record.

    Raises:
      harness.BenchmarkError: the peer is not installed, or its losses differ.
    """
    (torch,) = harness.import_peers("torch")
    task = build(task_spec(layers, width, heads, vocabulary))
    arrays = random_batch(vocabulary, batch, query_length, document_length)
    # As NumPy: our step gives its buffers away, and the peer must not see that.
    params, _ = jax.device_get(jax.jit(task.init)(jax.random.key(0), arrays))

    ours = Ours(task, params, arrays)
    peers = {
        f"torch AdamW {kind}": Peer(torch, params, arrays, heads, {kind: True})
        for kind in ("fused", "foreach")
    }
    losses = {
        name: [step(number) for number in range(_STEPS_CHECKED)]
        for name, step in {"retrievax": ours, **peers}.items()
    }
    difference = max(check(losses["retrievax"], losses[name]) for name in peers)

    seconds = harness.interleaved_medians({"retrievax": ours, **peers}, rounds=rounds)
    rates = {name: batch / median for name, median in seconds.items()}
    peer = max(peers, key=rates.get)
    return harness.record(
        name="train_step",
        ours=rates["retrievax"],
        peer=rates[peer],
        better="higher",
        unit="examples/s",
        peer_name=peer,
        rates=rates,
        losses=losses,
        loss_difference=difference,
        layers=layers,
        width=width,
        heads=heads,
        vocabulary=vocabulary,
        batch=batch,
        query_length=query_length,
        document_length=document_length,
        rounds=rounds,
        versions=harness.versions("jax", "flax", "optax", "torch"),
    )


def check(losses: Sequence[float], peer_losses: Sequence[float]) -> float:
    """Returns the greatest difference of the losses.

    Raises:
      harness.BenchmarkError: it is above 1e-4, or a loss is not finite.
    """
    difference = float(np.max(np.abs(np.subtract(losses, peer_losses))))
    if not difference <= _TOLERANCE:
        ours, theirs = (", ".join(f"{loss:.5f}" for loss in row) for row in (losses, peer_losses))
        raise harness.BenchmarkError(f"the losses differ by more than 1e-4: {ours}; the peer's: {theirs}")
    return difference


def task_spec(layers: int, width: int, heads: int, vocabulary: int) -> dict:
    """The task as a config spells it; `configs/dual_encoder/parts.py` without dropout, which no two share."""
    norm = dict(name="backbones.norms.RMSNorm")
    encoder = dict(
        name="backbones.encoder.TransformerEncoder",
        num_layers=layers,
        embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=vocabulary, width=width),
        block=dict(
            name="backbones.blocks.PreNorm",
            attention=dict(
                name="backbones.attention.SelfAttention",
                heads=heads,
                rotate=dict(name="backbones.positions.rotary"),
            ),
            feed_forward=dict(name="moe.feed_forward.Gated", width=width * 8 // 3),
            norm=norm,
        ),
        norm=norm,
        unroll=layers,
    )
    tower = dict(
        name="dual_encoder.towers.Tower", encoder=encoder, pooler=dict(name="dual_encoder.poolers.mean")
    )
    return dict(
        name="dual_encoder.task.Contrastive",
        model=dict(name="dual_encoder.towers.tied", tower=tower),
        objective=dict(name="dual_encoder.objectives.softmax.symmetric_info_nce"),
        temperature=_TEMPERATURE,
        learn_temperature=True,
        min_temperature=_MIN_TEMPERATURE,
    )


def random_batch(
    vocabulary: int, batch: int, query_length: int, document_length: int
) -> dict[str, np.ndarray]:
    """A batch as `corpora.batches.contrastive` makes it, of random tokens without padding."""
    draw = np.random.default_rng(0).integers
    rows = np.arange(batch, dtype=np.int32)[:, None]
    made = {"document_rows": rows, "positives": rows}
    for side, shape in (("query", (batch, query_length)), ("document", (batch, 1, document_length))):
        made[f"{side}_tokens"] = draw(0, vocabulary, shape).astype(np.int32)
        made[f"{side}_mask"] = np.ones(shape, np.int32)
        made[f"{side}_segments"] = np.zeros(shape, np.int32)
    return made


class Ours:
    """Our training step; each call takes one and returns its loss."""

    def __init__(self, task: Contrastive, params: Any, batch: Mapping[str, np.ndarray]):
        optimizer = optax.adamw(_RATE, weight_decay=_DECAY)
        self._step = jax.jit(make_step(task, optimizer), donate_argnums=0)
        self._batch, self._key = jax.device_put(dict(batch)), jax.random.key(1)
        self._state = jax.jit(lambda params: begin(optimizer, params, {}))(params)

    def __call__(self, number: int) -> float:
        del number
        self._state, metrics = self._step(self._state, self._batch, self._key)
        jax.block_until_ready(self._state)
        return float(metrics["loss"])


class Peer:
    """The same in PyTorch; `kind` chooses AdamW's implementation."""

    def __init__(
        self, torch: ModuleType, params: Any, batch: Mapping[str, np.ndarray], heads: int, kind: Mapping
    ):
        self._torch, self._heads = torch, heads
        trained = lambda array: torch.tensor(np.ascontiguousarray(array)).requires_grad_()
        encoder = params["model"]["query"]["encoder"]
        block = encoder["block"]
        attention, feed_forward = block["attention"], block["feed_forward"]
        # `linear` wants [out, in]; the three products of the attention are one.
        qkv = np.concatenate([attention[name]["kernel"] for name in ("query", "key", "value")], axis=-1)
        self._layers = [
            {
                "attention_norm": trained(block["attention_norm"]["scale"][n]),
                "qkv": trained(qkv[n].T),
                "out": trained(attention["out"]["kernel"][n].T),
                "feed_forward_norm": trained(block["feed_forward_norm"]["scale"][n]),
                **{name: trained(feed_forward[name]["kernel"][n].T) for name in ("gate", "in")},
                "feed_forward_out": trained(feed_forward["out"]["kernel"][n].T),
            }
            for n in range(len(qkv))
        ]
        self._table = trained(encoder["embed"]["table"])
        self._final_norm = trained(encoder["final_norm"]["scale"])
        self._log_temperature = trained(params["log_temperature"])
        self._optimizer = torch.optim.AdamW(
            [
                self._table,
                self._final_norm,
                self._log_temperature,
                *(tensor for layer in self._layers for tensor in layer.values()),
            ],
            lr=_RATE,
            weight_decay=_DECAY,
            **kind,
        )
        self._queries, self._documents = (
            torch.from_numpy(batch[f"{side}_tokens"].reshape(len(batch["positives"]), -1)).long()
            for side in ("query", "document")
        )
        self._angles = {x.shape[1]: self._rotation(x.shape[1]) for x in (self._queries, self._documents)}

    def __call__(self, number: int) -> float:
        del number
        functional = self._torch.nn.functional
        query_BD, document_BD = self._encode(self._queries), self._encode(self._documents)
        temperature = _MIN_TEMPERATURE + self._log_temperature.exp()
        scores_BB = query_BD @ document_BD.T / temperature
        own_B = self._torch.arange(len(scores_BB))
        loss = (functional.cross_entropy(scores_BB, own_B) + functional.cross_entropy(scores_BB.T, own_B)) / 2
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return loss.item()

    def _encode(self, tokens_BL):
        functional = self._torch.nn.functional
        x_BLD = functional.embedding(tokens_BL, self._table)
        batch, length, width = x_BLD.shape
        for layer in self._layers:
            y_BLD = functional.rms_norm(x_BLD, (width,), layer["attention_norm"], 1e-6)
            qkv = functional.linear(y_BLD, layer["qkv"]).view(batch, length, 3, self._heads, -1)
            q_BHLd, k_BHLd, v_BHLd = qkv.permute(2, 0, 3, 1, 4)
            q_BHLd, k_BHLd = self._rotate(q_BHLd), self._rotate(k_BHLd)
            y_BHLd = functional.scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLd)
            y_BLD = y_BHLd.transpose(1, 2).reshape(batch, length, width)
            x_BLD = x_BLD + functional.linear(y_BLD, layer["out"])
            y_BLD = functional.rms_norm(x_BLD, (width,), layer["feed_forward_norm"], 1e-6)
            hidden_BLF = functional.silu(functional.linear(y_BLD, layer["gate"]))
            hidden_BLF = hidden_BLF * functional.linear(y_BLD, layer["in"])
            x_BLD = x_BLD + functional.linear(hidden_BLF, layer["feed_forward_out"])
        x_BD = functional.rms_norm(x_BLD, (width,), self._final_norm, 1e-6).mean(dim=1)
        return functional.normalize(x_BD, dim=-1)

    def _rotation(self, length: int) -> tuple:
        half = self._table.shape[1] // self._heads // 2
        frequencies = 10_000.0 ** (-self._torch.arange(half, dtype=self._torch.float32) / half)
        angles = self._torch.outer(self._torch.arange(length, dtype=self._torch.float32), frequencies)
        return angles.cos(), angles.sin()

    def _rotate(self, x_BHLd):
        cos, sin = self._angles[x_BHLd.shape[2]]
        first, second = x_BHLd.chunk(2, dim=-1)
        return self._torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


if __name__ == "__main__":
    main()
