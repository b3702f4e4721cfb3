"""Speed of encoding documents on the CPU with a published encoder, beside sentence-transformers.

Both read the same folder and the same texts of mixed length, and turn text into vectors, the tokens included:
ours as `experiments.encode` does, the peer with `SentenceTransformer.encode_document`, which sorts by length
too, at several batch sizes of which the fastest counts. The vectors, at length 1, must agree to 1e-4, or
there is no report. Without a folder, one of MiniLM's size with random weights is made.

    make bench
    python -m experiments.benchmarks.encode --json
    python -m experiments.benchmarks.encode --model=FOLDER --json

Letters: N documents, D width.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from corpora.tables import Document
from corpora.tokens import TextSettings
from dual_encoder import pretrained
from dual_encoder.encoding import Encoder
from experiments.benchmarks import encode_shape, harness, random_encoder
from training.memory import keep_freed_memory

# all-MiniLM-L6-v2's sizes.
MINI = dict(layers=6, width=384, heads=12, hidden=1_536, vocabulary=30_522, length=256)
_PEER_BATCHES = (8, 16, 32)  # the last is its default
_MEDIAN_WORDS, _SPREAD, _MOST_WORDS = 70, 0.8, 400


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(
        "experiments.benchmarks.encode",
        "Encoding documents on the CPU: documents per second, ours beside sentence-transformers.",
        "python -m experiments.benchmarks.encode --model=FOLDER --json",
    )
    parser.add_argument(
        "--model", help="folder of a published encoder; by default one of MiniLM's size with random weights"
    )
    for name, value in dict(documents=256, rounds=3).items():
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    args = parser.parse_args(argv)
    for name in ("documents", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; at least 1 is needed")
    keep_freed_memory()  # for the peer too: it is one process
    jax.config.update("jax_platforms", "cpu")  # the peer runs there
    try:
        made = measure(args.model, args.documents, args.rounds)
    except (harness.BenchmarkError, pretrained.PretrainedError) as error:
        sys.exit(f"error: {error}")
    lines = [
        f"encoding {args.documents} documents of {made['tokens_mean']:.0f} tokens on average, "
        f"{made['length']} at most, on {made['device']}",
        f"ours {made['ours']:.1f} documents/s ({made['padding']:.1%} padding), {made['peer_name']} "
        f"{made['peer']:.1f}: ratio {made['ratio']:.2f}; vectors agree to {made['difference']:.0e}",
    ]
    harness.report(made, lines, as_json=args.json)


def measure(model: str | None, documents: int, rounds: int) -> dict:
    """Checks that both give the same vectors, times them, and returns the record.

    Raises:
      harness.BenchmarkError: the peer is not installed, or its vectors differ.
      PretrainedError: the folder cannot be read.
    """
    (peer_package,) = harness.import_peers("sentence_transformers")
    texts = random_encoder.texts(documents, words=_MEDIAN_WORDS, spread=_SPREAD, most=_MOST_WORDS, seed=0)
    with tempfile.TemporaryDirectory() as made:
        folder = model
        if folder is None:
            folder = str(Path(made) / "mini")
            random_encoder.write(Path(folder), **MINI)
        ours = Ours(folder, texts)
        peer = peer_package.SentenceTransformer(folder, device="cpu")
    callables = {"retrievax": ours} | {
        f"sentence-transformers, {rows} at a time": peer_of(peer, texts, rows) for rows in _PEER_BATCHES
    }
    vectors_ND = at_length_1(ours(0))
    for name, run in callables.items():
        encode_shape.check(vectors_ND, at_length_1(run(0)), name)
    difference = float(np.abs(vectors_ND - at_length_1(run(0))).max())
    seconds = harness.interleaved_medians(callables, rounds=rounds, warmup=0)  # both have run above
    rates = {name: documents / median for name, median in seconds.items()}
    best = max((name for name in rates if name != "retrievax"), key=rates.get)
    return harness.record(
        name="encode",
        ours=rates["retrievax"],
        peer=rates[best],
        better="higher",
        unit="documents/s",
        peer_name=best,
        rates=rates,
        difference=difference,
        padding=ours.padding,
        model=model or MINI,
        documents=documents,
        length=ours.text.document_length,
        tokens_mean=ours.tokens / documents,
        rounds=rounds,
        versions=harness.versions("jax", "flax", "torch", "transformers", "sentence-transformers"),
    )


class Ours:
    """Text to vectors [N, D] at each call.

    Attributes:
      text: lengths and prompts.
      padding: the share of padding in the last call's positions.
      tokens: of the last call.
    """

    def __init__(self, folder: str, texts: Sequence[str]):
        self._documents = [Document(str(number), "", text) for number, text in enumerate(texts)]
        self._tokenizer = pretrained.tokenizer(folder)
        self.text = TextSettings(**pretrained.text(folder))
        self._encoder = Encoder(pretrained.model(folder))
        self._variables = self._encoder.place({"params": {"query": pretrained.parameters(folder)}})
        self.padding, self.tokens = 0.0, 0

    def __call__(self, number: int) -> np.ndarray:
        del number
        encoder = self._encoder
        encoder.computed = encoder.tokens = 0
        table = self.text.passages(self._tokenizer, self._documents)
        vectors_ND = encoder.documents(self._variables, table, self.text.document_length)
        self.padding, self.tokens = 1 - encoder.tokens / encoder.computed, encoder.tokens
        return vectors_ND


def peer_of(peer: Any, texts: Sequence[str], rows: int) -> Callable[[int], np.ndarray]:
    return lambda number: peer.encode_document(list(texts), batch_size=rows, show_progress_bar=False)


def at_length_1(vectors_ND: np.ndarray) -> np.ndarray:
    """The vectors at length 1: a folder whose similarity is the cosine need not say that they are."""
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
