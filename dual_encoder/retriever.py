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

from corpora.dataset import Dataset, open_prepared
from corpora.tables import DataError
from dual_encoder import adapter as adapting
from dual_encoder import vectors
from dual_encoder.trained import Trained
from eval import fusion
from index import exact, lexical, passages
from training.build import build

SYSTEMS = ("hybrid", "dual_encoder", "bm25")
FUSION_DEPTH = 1_000  # documents of either system that their fusion looks at
_MANIFEST, _VECTORS, _BM25 = "manifest.json", "vectors", "bm25"


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
      trained: the dual encoder, which here reads one query at a time.
      store: the vectors of the documents, or of their passages: a document is scored by its best.
      bm25: over the same documents.
      weight: of the dual encoder in the fusion, 0 to 1.
      adapters: what is added to the vectors of a side, see `dual_encoder.adapter`; None for nothing.
    """

    def __init__(
        self,
        dataset: Dataset,
        trained: Trained,
        store: vectors.VectorStore,
        bm25: lexical.BM25,
        weight: float,
        adapters: adapting.Adapters | None = None,
    ):
        self.dataset, self._trained = dataset, trained
        document_RD, self._document_of_row = store.vectors(), store.text_of_row
        self._adapters, self._unit = adapters, bool(adapters) and vectors.are_unit(document_RD)
        self._index = exact.build(self._adapted("document", document_RD))
        self._bm25, self._weight = bm25, weight

    @classmethod
    def load(
        cls, run_dir: str | Path, *, allow_batch_dependence: bool = False, adapter: str | Path | None = None
    ) -> "Retriever":
        """Opens a trained and evaluated run.

        `allow_batch_dependence` is that of `Trained.load`; `adapter` a file of experiments.adapt.

        Raises:
          DataError: the run has no index, its collection is no longer as it was indexed, or the adapter is
            none of vectors like these.
          CheckpointError: the run has no checkpoint.
          DependenceError: its vectors depend on the batch, and it is not allowed.
        """
        run_dir, folder = Path(run_dir), Path(run_dir) / "index"
        if not (folder / _MANIFEST).is_file() or not (folder / _VECTORS).is_dir():
            raise DataError(f"{run_dir} has no index; run python -m experiments.evaluate --workdir={run_dir}")
        manifest = json.loads((folder / _MANIFEST).read_text())
        trained, store = load_indexed(
            run_dir,
            batch_size=1,
            devices=jax.local_devices()[:1],
            allow_batch_dependence=allow_batch_dependence,
        )
        dataset = _open(manifest, _config(run_dir), run_dir)
        adapters = None if adapter is None else adapting.load(adapter, trained.width)
        return cls(dataset, trained, store, lexical.BM25.load(folder / _BM25), manifest["weight"], adapters)

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

    def _adapted(self, side: str, x_ND: np.ndarray) -> np.ndarray:
        if not self._adapters:
            return x_ND  # as it is on disk
        return np.asarray(adapting.adapted(self._adapters, side, x_ND, unit=self._unit))

    def _search(self, query: str, k: int, system: str) -> list[tuple[int, float]]:
        if system == "bm25":
            scores_QK, rows_QK = self._bm25.search([query], k)
        else:
            if not len(self._trained.tokenizer.encode([query], 1)[0]):
                return []  # a query of no token is like every document, and finds none
            vectors_QD = self._adapted("query", self._trained.queries([query])[0])
            scores_QK, rows_QK = passages.search(
                lambda depth: exact.search(self._index, vectors_QD, depth, query_batch=1),
                self._document_of_row,
                k,
            )
        pairs = zip(np.asarray(rows_QK)[0].tolist(), np.asarray(scores_QK)[0].tolist(), strict=True)
        return [(row, score) for row, score in pairs if row >= 0]


def vectors_folder(run_dir: str | Path) -> Path:
    """Where a run's documents are encoded to, see dual_encoder.vectors."""
    return Path(run_dir) / "index" / _VECTORS


def load_indexed(
    run_dir: str | Path, *, texts_hash: str | None = None, **options: Any
) -> tuple[Trained, vectors.VectorStore]:
    """Returns a run's dual encoder, and the vectors of its documents, which are of the same checkpoint.

    Args:
      run_dir: a trained and evaluated run.
      texts_hash: `corpus_hash` of the documents that the vectors must be of; None for any.
      **options: of `Trained.load`.

    Raises:
      DataError: there is no such run, or it has no vectors; or they are of another checkpoint than its best
        one now, or of other documents.
      CheckpointError, DependenceError: see `Trained.load`.
    """
    trained, folder = Trained.load(run_dir, _config(run_dir), **options), vectors_folder(run_dir)
    about = trained.identity() | ({} if texts_hash is None else {"texts_hash": texts_hash})
    differing = vectors.differences(folder, about)
    if differing:
        of_texts = differing[0].startswith("texts_hash")
        other = "other documents than these" if of_texts else "another checkpoint than its best one now"
        raise DataError(
            f"{run_dir} was indexed with {other} ({differing[0]}); "
            f"run python -m experiments.evaluate --workdir={run_dir}"
        )
    return trained, vectors.VectorStore.open(folder)


def save(run_dir: str | Path, dataset: Dataset, bm25: lexical.BM25, weight: float) -> None:
    """Completes a run's `index/`, once its vectors are there; the manifest comes last, so that all is."""
    folder = Path(run_dir) / "index"
    (folder / _MANIFEST).unlink(missing_ok=True)
    bm25.save(folder / _BM25)
    manifest = {"data": str(dataset.folder), "corpus_hash": dataset.corpus_hash, "weight": weight}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _config(run_dir: str | Path) -> dict[str, Any]:
    file = Path(run_dir) / "config.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"no run in {run_dir}: {file}: {error}") from None


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
