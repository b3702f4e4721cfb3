"""Embeddings of documents for schemes that cluster them, as functions that a config names.

    vectors=dict(name="generative_retrieval.vectors.latent", width=128)
    vectors=dict(name="generative_retrieval.vectors.of_run", run="runs/medquad")

Each is `(documents, fitted) -> float32 [N, D]`, where whatever is learned of a collection is learned of its
first `fitted` documents: those behind them were added later, and their vectors must mean the same.

Letters: N documents, R passages, D width.
"""

import json
from pathlib import Path

import numpy as np

from corpora.tables import DataError, Document
from dual_encoder.trained import Trained
from generative_retrieval.docids import Documents
from index import latent as latent_semantics


def latent(documents: Documents, fitted: int, *, width: int, title_times: int = 1) -> np.ndarray:
    """TF-IDF of title and text, reduced, see `index.latent.fit`.

    Args:
      documents: N.
      fitted: the first documents, of which terms and directions are learned.
      width: D.
      title_times: how often a title counts.

    Raises:
      ValueError: `width` is out of its range.
    """
    pairs = zip(documents.titles, documents.texts, strict=True)
    whole = [" ".join([title] * title_times + [text]) for title, text in pairs]
    found = latent_semantics.fit(whole[:fitted], width)
    return found.vectors(whole)


def of_run(documents: Documents, fitted: int, *, run: str) -> np.ndarray:
    """Those of a trained dual encoder; of a document in several passages their mean, of length 1.

    Args:
      documents: N.
      fitted: of no consequence, as nothing is learned.
      run: its run directory.

    Raises:
      DataError: there is no run.
      CheckpointError: it has no checkpoint.
      DependenceError: its vectors depend on what is encoded together.
    """
    del fitted
    try:
        config = json.loads((Path(run) / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"config.docids.vectors.run: no run in {run}: {error}") from None
    trained = Trained.load(run, config)
    rows = zip(documents.doc_ids, documents.titles, documents.texts, strict=True)
    vectors_RD, document_R = trained.documents([Document(*row) for row in rows])
    sums_ND = np.zeros((len(documents), vectors_RD.shape[1]), np.float32)
    np.add.at(sums_ND, document_R, vectors_RD)
    return sums_ND / np.maximum(np.linalg.norm(sums_ND, axis=1, keepdims=True), 1e-12)
