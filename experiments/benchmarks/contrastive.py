"""Speed of contrastive training on the CPU, beside sentence-transformers' trainer.

Both fine-tune the encoder of one folder, of MiniLM's size with random weights, with AdamW on the same pairs
of texts of mixed length: InfoNCE over the batch (its MultipleNegativesRankingLoss with a scale of 20), the
folder's dropout, gradients clipped. Ours makes tokens of all texts before the first step, and that time
counts; the peer's collator makes them at each step. Time is that of whole steps, the batches included.

`cached` is the same with gradient caching at a large batch (its CachedMultipleNegativesRankingLoss; our
`chunks`) with as many rows of a chunk, of fewer layers and shorter texts, so that a step fits a small
machine.

Before anything is timed, both take three steps without dropout from the same weights on the same batch: the
losses must agree to 1e-4, or there is no report.

    make bench
    python -m experiments.benchmarks.contrastive --json

Letters: B pairs of a batch, L length.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import optax

from corpora import batches
from corpora.tables import Document
from corpora.tokens import TextSettings
from dual_encoder import pretrained
from dual_encoder.objectives import softmax
from dual_encoder.task import Contrastive
from experiments.benchmarks import harness, random_encoder, train_step
from training.memory import keep_freed_memory
from training.step import make_step
from training.task import begin

_RATE, _CLIP, _SCALE = 2e-5, 1.0, 20.0
_STEPS_CHECKED = 3
_CHECKED_ROWS = 16
_WIDTHS = dict(width=384, heads=12, hidden=1_536, vocabulary=30_522)
_SPREAD = 0.6


@dataclasses.dataclass(frozen=True)
class Sizes:
    """One comparison.

    Attributes:
      layers: of the encoder.
      batch: B.
      chunk: rows encoded at a time with gradient caching, 0 without.
      words: the median of documents; queries have a quarter.
      length: tokens of a document at most; queries have half.
      steps: timed, after one that is not.
    """

    layers: int
    batch: int
    chunk: int
    words: int
    length: int
    steps: int


PLAIN = Sizes(layers=6, batch=64, chunk=0, words=70, length=128, steps=6)
CACHED = Sizes(layers=2, batch=4_096, chunk=64, words=16, length=32, steps=2)


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(
        "experiments.benchmarks.contrastive",
        "Contrastive training on the CPU: examples per second, ours beside sentence-transformers.",
        "python -m experiments.benchmarks.contrastive --json",
    )
    flags = {}
    for prefix, sizes in (("", PLAIN), ("cached-", CACHED)):
        for field, value in dataclasses.asdict(sizes).items():
            if value:
                flags[prefix, field] = f"{prefix}{field}"
                parser.add_argument(
                    f"--{prefix}{field}", type=int, default=value, help="default: %(default)s"
                )
    args = parser.parse_args(argv)
    given = {}
    for (prefix, field), flag in flags.items():
        value = getattr(args, flag.replace("-", "_"))
        if value < 1:
            parser.error(f"--{flag} is {value}; at least 1 is needed")
        given.setdefault(prefix, {})[field] = value
    if args.cached_batch % args.cached_chunk:
        parser.error(f"--cached-chunk is {args.cached_chunk}; allowed: a divisor of {args.cached_batch}")
    keep_freed_memory()  # for the peer too: it is one process
    jax.config.update("jax_platforms", "cpu")  # the peer runs there
    try:
        made = measure(
            dataclasses.replace(PLAIN, **given[""]), dataclasses.replace(CACHED, **given["cached-"])
        )
    except harness.BenchmarkError as error:
        sys.exit(f"error: {error}")
    lines = [
        f"contrastive training on {made['device']}",
        *(
            f"  {name}: {of['layers']} layers, batches of {of['batch']:,}: ours {of['ours']:.1f} examples/s, "
            f"sentence-transformers {of['peer']:.1f}: ratio {of['ratio']:.2f}"
            for name, of in (("plain", made), ("cached", made["cached"]))
        ),
        f"losses of {_STEPS_CHECKED} steps agree to {made['loss_difference']:.0e}",
    ]
    harness.report(made, lines, as_json=args.json)


def measure(plain: Sizes, cached: Sizes) -> dict:
    """Checks that the losses agree, times both comparisons, and returns the record.

    Raises:
      harness.BenchmarkError: the peer is not installed, or its losses differ.
    """
    torch, peer = harness.import_peers("torch", "sentence_transformers")
    of = compare(torch, peer, plain)
    of.pop("ratio")  # the record makes it
    return harness.record(
        name="contrastive",
        better="higher",
        unit="examples/s",
        **of,
        cached=compare(torch, peer, cached),
        versions=harness.versions("jax", "flax", "optax", "torch", "transformers", "sentence-transformers"),
    )


def compare(torch: ModuleType, peer: ModuleType, sizes: Sizes) -> dict[str, Any]:
    """Returns examples/s of both, their ratio, and the greatest difference of their losses."""
    count = sizes.batch * (sizes.steps + 1)
    queries, documents = (
        random_encoder.texts(count, words=words, spread=_SPREAD, most=2 * sizes.length, seed=seed)
        for words, seed in ((max(sizes.words // 4, 3), 1), (sizes.words, 2))
    )
    with tempfile.TemporaryDirectory() as made:
        folder = str(Path(made) / "mini")
        random_encoder.write(Path(folder), layers=sizes.layers, length=sizes.length, **_WIDTHS)
        rows = min(sizes.batch, _CHECKED_ROWS)
        chunk = min(sizes.chunk, rows // 2)
        checked = dataclasses.replace(sizes, batch=rows, chunk=chunk)
        ours = Ours(folder, queries[:rows], documents[:rows], checked, dropout=0.0)
        losses = [ours.step(ours.batch(0)) for _ in range(_STEPS_CHECKED)]
        theirs = peer_losses(torch, peer, folder, queries[:rows], documents[:rows], checked)
        difference = train_step.check(losses, theirs)
        say(f"{sizes.layers} layers, batches of {sizes.batch:,}: ours")
        ours_seconds = time_ours(folder, queries, documents, sizes)
        say(f"{sizes.layers} layers, batches of {sizes.batch:,}: sentence-transformers")
        peer_seconds = time_peer(peer, folder, queries, documents, sizes, made)
    return dict(
        ours=sizes.batch / ours_seconds,
        peer=sizes.batch / peer_seconds,
        ratio=peer_seconds / ours_seconds,
        loss_difference=difference,
        losses=losses,
        peer_losses=theirs,
        **dataclasses.asdict(sizes),
    )


class Ours:
    """Our training of one folder's encoder on pairs of texts, which are made into tokens here."""

    def __init__(
        self,
        folder: str,
        queries: Sequence[str],
        documents: Sequence[str],
        sizes: Sizes,
        *,
        dropout: float | None = None,
    ):
        self._sizes = sizes
        text = TextSettings(**pretrained.text(folder) | dict(query_length=query_length(sizes)))
        tokenizer = pretrained.tokenizer(folder)
        rows = np.arange(len(queries), dtype=np.int32)
        self._make = batches.contrastive(
            batches.Pairs(rows, rows, rows[:, None], [str(row) for row in rows]),
            text.queries(tokenizer, queries),
            text.passages(tokenizer, [Document(str(n), "", t) for n, t in enumerate(documents)]),
            query_length=text.query_length,
            document_length=text.document_length,
        )
        task = Contrastive(
            pretrained.model(folder, dropout=dropout, unroll=sizes.layers),
            softmax.info_nce,
            temperature=1 / _SCALE,
            chunks=sizes.batch // sizes.chunk if sizes.chunk else 1,
        )
        optimizer = optax.chain(optax.clip_by_global_norm(_CLIP), optax.adamw(_RATE, weight_decay=0.0))
        self._step = jax.jit(make_step(task, optimizer), donate_argnums=0)
        params = {"model": {"query": pretrained.parameters(folder)}}
        self._state = jax.jit(lambda params: begin(optimizer, params, {}))(params)
        self._key = jax.random.key(1)

    def batch(self, step: int) -> Mapping[str, np.ndarray]:
        rows = np.arange(step * self._sizes.batch, (step + 1) * self._sizes.batch)
        return self._make(rows, step)

    def step(self, batch: Mapping[str, np.ndarray]) -> float:
        """Takes a step and returns its loss."""
        self._state, metrics = self._step(self._state, batch, self._key)
        return float(jax.block_until_ready(metrics)["loss"])


def query_length(sizes: Sizes) -> int:
    return max(sizes.length // 2, 8)


def time_ours(folder: str, queries: Sequence[str], documents: Sequence[str], sizes: Sizes) -> float:
    """Median seconds of a step, with its share of the time that tokens took."""
    started = time.perf_counter()
    ours = Ours(folder, queries, documents, sizes)
    tokens = (time.perf_counter() - started) / (sizes.steps + 1)
    for step in range(sizes.steps + 1):  # whatever shapes there are, compiled
        ours.step(ours.batch(step))
    seconds = []
    for step in range(sizes.steps):
        started = time.perf_counter()
        ours.step(ours.batch(step))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) + tokens


def peer_loss(peer: ModuleType, model: Any, sizes: Sizes) -> Any:
    """The peer's objective: with gradient caching where there is a chunk."""
    losses = peer.sentence_transformer.losses
    if sizes.chunk:
        return losses.CachedMultipleNegativesRankingLoss(model, scale=_SCALE, mini_batch_size=sizes.chunk)
    return losses.MultipleNegativesRankingLoss(model, scale=_SCALE)


def peer_losses(
    torch: ModuleType,
    peer: ModuleType,
    folder: str,
    queries: Sequence[str],
    documents: Sequence[str],
    sizes: Sizes,
) -> list[float]:
    """The losses of a few steps on one batch, without dropout."""
    model = open_peer(peer, folder, sizes)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.transformers_model.config.attention_probs_dropout_prob = 0.0
    for layer in model.transformers_model.encoder.layer:
        layer.attention.self.dropout.p = 0.0
    loss = peer_loss(peer, model, sizes)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.0)
    found = []
    for _ in range(_STEPS_CHECKED):
        features = [
            model.preprocess(list(texts), max_length=length)
            for texts, length in ((queries, query_length(sizes)), (documents, sizes.length))
        ]
        value = loss(features, None)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        found.append(value.item())
    return found


def open_peer(peer: ModuleType, folder: str, sizes: Sizes) -> Any:
    model = peer.SentenceTransformer(folder, device="cpu")
    model.max_seq_length = sizes.length
    return model


def time_peer(
    peer: ModuleType,
    folder: str,
    queries: Sequence[str],
    documents: Sequence[str],
    sizes: Sizes,
    scratch: str,
) -> float:
    """Median seconds of a step of its trainer, from the end of one to that of the next."""
    datasets, transformers = harness.import_peers("datasets", "transformers")
    model = open_peer(peer, folder, sizes)
    ends: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **more):
            ends.append(time.perf_counter())

    # The trainer cuts all texts alike; queries are cut before.
    shortened = list(cut(model.tokenizer, queries, query_length(sizes)))
    trainer = peer.SentenceTransformerTrainer(
        model=model,
        args=peer.SentenceTransformerTrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=sizes.batch,
            max_steps=sizes.steps + 1,
            learning_rate=_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=_CLIP,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=datasets.Dataset.from_dict({"anchor": shortened, "positive": list(documents)}),
        loss=peer_loss(peer, model, sizes),
        callbacks=[Clock()],
    )
    trainer.train()
    return statistics.median(np.diff(ends))


def cut(tokenizer: Any, texts: Sequence[str], length: int) -> Iterator[str]:
    """Texts cut to tokens of a length, their frame included, as text again."""
    for text in texts:
        ends = tokenizer(text, truncation=True, max_length=length, return_offsets_mapping=True)
        yield text[: max(end for _, end in ends["offset_mapping"])]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
