"""A trained run as something to search with: dual encoder, BM25, or their fusion.

    retriever = Retriever.load("runs/quickstart")
    for hit in retriever.search("parse an ISO date", k=5):
        print(hit.rank, hit.score, hit.doc_id)

Everything comes from the run directory (config, tokenizer, best checkpoint, `index/`) and from the
prepared collection that it names.

Letters: Q queries, N documents, D width, K results.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from corpora import tokenizer as tokenizers
from corpora.dataset import Dataset, open_prepared
from corpora.tables import DataError
from corpora.tokenizer import Tokenizer
from corpora.tokens import TextSettings
from dual_encoder.encoding import Encoder, best_params
from dual_encoder.towers import DualEncoder
from eval import fusion
from index import exact, lexical
from training.build import build
from training.mesh import data_mesh

SYSTEMS = ("hybrid", "dual_encoder", "bm25")
FUSION_DEPTH = 1_000  # documents of either system that their fusion looks at
TOKENIZER_FILE = "tokenizer.json"
_MANIFEST, _VECTORS, _BM25 = "manifest.json", "vectors.npy", "bm25"


class Hit(NamedTuple):
    """One result: `rank` counts from 1; scores compare within one search only."""

    rank: int
    score: float
    doc_id: str
    title: str
    text: str


class Retriever:
    """Searches a collection. `load` opens one from a run; `save` is what puts it there.

    Args:
      dataset: the collection.
      tokenizer: the run's.
      settings: how queries become tokens.
      model: the dual encoder, and its parameters `params`.
      vectors_ND: float32 [N, D], documents in row order.
      bm25: over the same documents.
      weight: of the dual encoder in the fusion, 0 to 1.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: Tokenizer,
        settings: TextSettings,
        model: DualEncoder,
        params: Any,
        vectors_ND: np.ndarray,
        bm25: lexical.BM25,
        weight: float,
    ):
        self.dataset = dataset
        self._tokenizer, self._settings = tokenizer, settings
        self._encoder = Encoder(model, batch_size=1, mesh=data_mesh(jax.devices()[:1]))
        self._params = self._encoder.place(params)
        self._index, self._bm25, self._weight = exact.build(vectors_ND), bm25, weight

    @classmethod
    def load(cls, run_dir: str | Path) -> "Retriever":
        """Opens a trained and evaluated run.

        Raises:
          DataError: the run has no index, or its collection is no longer as it was indexed.
          CheckpointError: the run has no checkpoint.
        """
        run_dir, folder = Path(run_dir), Path(run_dir) / "index"
        if not (folder / _MANIFEST).is_file():
            raise DataError(f"{run_dir} has no index; run python -m experiments.evaluate --workdir={run_dir}")
        manifest = json.loads((folder / _MANIFEST).read_text())
        config = json.loads((run_dir / "config.json").read_text())
        task = build(config["task"], "config.task")
        step, params = best_params(run_dir, task)
        if step != manifest["step"]:
            raise DataError(
                f"{run_dir} was indexed at step {manifest['step']} and its best checkpoint is now of step "
                f"{step}; run python -m experiments.evaluate --workdir={run_dir}"
            )
        return cls(
            _open(manifest, config, run_dir),
            tokenizers.load(str(run_dir / TOKENIZER_FILE)),
            TextSettings(**config["text"]),
            task.model,
            params,
            np.load(folder / _VECTORS),
            lexical.BM25.load(folder / _BM25),
            manifest["weight"],
        )

    def search(self, query: str, k: int = 10, system: str = "hybrid") -> list[Hit]:
        """Returns the k best documents of a query, best first; fewer where fewer match.

        Args:
          query: any text.
          k: results.
          system: "hybrid" (dual encoder and BM25 interpolated), "dual_encoder" or "bm25".

        Raises:
          ValueError: an unknown system, or k below 1.
        """
        if system not in SYSTEMS:
            raise ValueError(f"system is {system!r}; allowed: {', '.join(SYSTEMS)}")
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        if system == "hybrid":
            depth = max(k, FUSION_DEPTH)
            dense, sparse = ({"": dict(self._search(query, depth, name))} for name in SYSTEMS[1:])
            scores = fusion.interpolate(dense, sparse, self._weight)[""]
            ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]
        else:
            ranked = self._search(query, k, system)
        documents = self.dataset.documents.read([row for row, _ in ranked])
        return [
            Hit(rank, score, *document)
            for rank, ((_, score), document) in enumerate(zip(ranked, documents, strict=True), 1)
        ]

    def _search(self, query: str, k: int, system: str) -> list[tuple[int, float]]:
        if system == "bm25":
            scores_QK, rows_QK = self._bm25.search([query], k)
        else:
            table = self._settings.queries(self._tokenizer, [query])
            if not len(self._tokenizer.encode([query], 1)[0]):
                return []  # a query of no token is like every document, and finds none
            vectors_QD = self._encoder.queries(self._params, table, self._settings.query_length)
            scores_QK, rows_QK = exact.search(self._index, vectors_QD, k, query_batch=1)
        pairs = zip(np.asarray(rows_QK)[0].tolist(), np.asarray(scores_QK)[0].tolist(), strict=True)
        return [(row, score) for row, score in pairs if row >= 0]


def save(
    run_dir: str | Path,
    dataset: Dataset,
    step: int,
    vectors_ND: np.ndarray,
    bm25: lexical.BM25,
    weight: float,
) -> None:
    """Writes a run's `index/`; the manifest comes last, so that what is there is whole."""
    folder = Path(run_dir) / "index"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MANIFEST).unlink(missing_ok=True)
    np.save(folder / _VECTORS, vectors_ND)
    bm25.save(folder / _BM25)
    manifest = {
        "data": str(dataset.folder),
        "corpus_hash": dataset.corpus_hash,
        "step": step,  # of the checkpoint that encoded the documents
        "weight": weight,
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _open(manifest: Mapping[str, Any], config: Mapping[str, Any], run_dir: Path) -> Dataset:
    """Opens the prepared collection; makes it anew from the source if it is gone and nothing changed."""
    try:
        return open_prepared(Path(manifest["data"]))
    except DataError:
        dataset = build(config["data"], "config.data")
    if dataset.corpus_hash != manifest["corpus_hash"]:
        raise DataError(
            f"the documents of {dataset.name} changed since {run_dir} was indexed; "
            f"run python -m experiments.evaluate --workdir={run_dir}"
        )
    return dataset
