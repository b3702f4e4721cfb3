"""Whether a query that was made from a document leads back to it: what a retriever finds for it.

Dai et al. (2022), "Promptagator: Few-shot Dense Retrieval From 8 Examples", keep a generated query only if
its document is the first that a retriever finds.

Letters: Q queries, K documents found.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from corpora.dataset import Dataset
from dual_encoder import retriever
from index import exact, lexical, passages

# (texts, k) -> rows of the k best documents of each, int32 [Q, k], -1 for none
Search = Callable[[Sequence[str], int], np.ndarray]
NONE = 0  # the rank of a document that is not found


def bm25(dataset: Dataset, **arguments) -> Search:
    """Returns a search of titles and texts by BM25; the arguments are those of `lexical.BM25.build`."""
    titles, texts = dataset.titles_and_texts()
    index = lexical.BM25.build(texts, titles=titles, **arguments)
    return lambda queries, k: index.search(list(queries), k)[1]


def dual_encoder(run_dir: str | Path, dataset: Dataset) -> Search:
    """Returns a search by a trained and evaluated dual encoder of the same documents.

    Raises:
      DataError, CheckpointError: see `dual_encoder.retriever.load_indexed`.
    """
    trained, store = retriever.load_indexed(run_dir, texts_hash=dataset.corpus_hash)
    index = exact.build(store.vectors())

    def search(queries: Sequence[str], k: int) -> np.ndarray:
        vectors_QD, _ = trained.queries(list(queries))
        return passages.search(lambda depth: exact.search(index, vectors_QD, depth), store.text_of_row, k)[1]

    return search


def ranks(search: Search, queries: Sequence[str], rows_Q: np.ndarray, k: int) -> np.ndarray:
    """Returns the rank from 1 at which each query finds its document, NONE beyond k: int64 [Q].

    Args:
      search: the retriever.
      queries: Q texts.
      rows_Q: int, the document that each was made from.
      k: documents looked at.
    """
    own_QK = np.asarray(search(queries, k)) == np.asarray(rows_Q)[:, None]
    return np.where(own_QK.any(axis=1), own_QK.argmax(axis=1) + 1, NONE)
