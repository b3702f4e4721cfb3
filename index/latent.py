"""Texts as vectors without a trained model: TF-IDF, reduced by the singular value decomposition (Deerwester
et al., 1990, "Indexing by Latent Semantic Analysis").

For clustering documents where there is no encoder yet; an encoder's vectors say more.

Letters: N documents, V terms, D width.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from index import terms
from index.terms import Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Latent:
    """The terms of a collection, and what each adds to a vector.

    Attributes:
      vocabulary: V terms.
      weights_VD: float32.
    """

    vocabulary: Vocabulary
    weights_VD: np.ndarray

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [N, D] of length 1, or 0 for a text without a known term."""
        return _vectors(self.vocabulary.counts(texts), self.weights_VD)


def fit(texts: Sequence[str], width: int) -> Latent:
    """Finds the `width` directions along which the TF-IDF vectors of texts differ most from 0.

    A term that occurs c times weighs (1 + ln c) (1 + ln((1 + N) / (1 + n))), where n texts have it; vectors
    are scaled to length 1 before the decomposition. The same texts give the same directions, which later
    texts are laid along too.

    Args:
      texts: N documents.
      width: D, below N and below the number of terms.

    Raises:
      ValueError: `width` is out of its range.
    """
    analyzed = terms.analyze(texts)
    counts_NV = analyzed.text
    most = min(counts_NV.shape) - 1
    if not 1 <= width <= most:
        raise ValueError(
            f"width is {width}; allowed: 1 to {most}, below the {counts_NV.shape[0]} texts and their "
            f"{counts_NV.shape[1]} terms"
        )
    having_V = np.bincount(counts_NV.indices, minlength=counts_NV.shape[1])
    idf_V = 1 + np.log((1 + counts_NV.shape[0]) / (1 + having_V))
    x_NV = _damped(counts_NV) * idf_V[None, :]
    lengths_N = np.sqrt(np.asarray(x_NV.multiply(x_NV).sum(axis=1))).ravel()
    x_NV = scipy.sparse.diags_array(1 / np.maximum(lengths_N, 1e-12)) @ x_NV
    x_NV = x_NV.tocsr().astype(np.float32)
    start = np.random.default_rng(0).normal(size=min(x_NV.shape)).astype(np.float32)
    found = scipy.sparse.linalg.svds(x_NV, k=width, v0=start, return_singular_vectors="vh")
    directions_DV = found[2][::-1]  # the strongest first
    strongest_D = np.abs(directions_DV).argmax(axis=1)
    signs_D = np.sign(directions_DV[np.arange(width), strongest_D])  # which are free: made the same each time
    weights_VD = (idf_V[None, :] * directions_DV * signs_D[:, None]).T
    return Latent(analyzed.vocabulary, np.ascontiguousarray(weights_VD, np.float32))


def _vectors(counts_NV: scipy.sparse.csr_array, weights_VD: np.ndarray) -> np.ndarray:
    x_ND = _damped(counts_NV) @ weights_VD
    return (x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _damped(counts_NV: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    damped_NV = counts_NV.copy()
    damped_NV.data = 1 + np.log(damped_NV.data)
    return damped_NV
