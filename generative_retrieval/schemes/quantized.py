"""Codes of a quantizer as ids: neighbors share symbols.

Residual codes go from coarse to fine, so that neighbors share the beginnings of their ids (Lee et al., 2022,
"Autoregressive Image Generation using Residual Quantization"; Rajput et al., 2023, "Recommender Systems with
Generative Retrieval", who train the codebooks with an autoencoder, and number the documents of one code as
is done here). Product codes say each one part of the vector. Codebooks are those of k-means over the first
documents; later ones are coded with the same.

The symbols of a code are 1 to k at every place; `by_position` tells places apart. The number behind it, see
`suffix`, is spelled with the same ones.

Letters: N documents, T symbols of the longest id, M symbols of a code, D width.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from clustering import product, residual
from generative_retrieval.docids import Docids, DocidsError, Documents
from generative_retrieval.schemes import checks, suffix

_BOOKS = "codebooks"


@dataclasses.dataclass(frozen=True)
class Residual:
    """Codes of a residual quantizer.

    Attributes:
      steps: M.
      k: centroids of a step; no more than documents.
      beam: sums that go on from step to step, see clustering.residual.
    """

    steps: int
    k: int
    beam: int = 1

    needs_vectors: ClassVar[bool] = True
    needs_tokenizer: ClassVar[bool] = False

    def __post_init__(self):
        checks.check_least("steps", self.steps, 1)
        checks.check_least("k", self.k, 2)
        checks.check_least("beam", self.beam, 1)

    def assign(self, documents: Documents, seed: int) -> Docids:
        """Trains the quantizer and gives ids.

        Raises:
          DocidsError, ValueError: vectors are missing, malformed, not finite, or fewer than k.
        """
        vectors_ND = checks.vectors(documents, "residual")
        sharding = documents.sharding
        found = residual.fit(vectors_ND, self.steps, self.k, beam=self.beam, seed=seed, sharding=sharding)
        codes_NM = found.encode(vectors_ND, sharding=sharding) + 1
        return _docids(codes_NM, self.k, "residual", found.codebooks_MKD)

    def extend(self, docids: Docids, documents: Documents, seed: int) -> Docids:
        """Codes more documents with the same codebooks; nothing is drawn.

        Raises:
          DocidsError: `docids` are of another scheme, or vectors are not as wide as its codebooks.
        """
        books_MKD = _own_books(docids, "residual", self.steps, self.k)
        vectors_ND = checks.vectors(documents, "residual", width=books_MKD.shape[2])
        if not len(documents):
            return docids
        found = residual.Residual(books_MKD, self.beam)
        new_NM = found.encode(vectors_ND, sharding=documents.sharding) + 1
        codes_NM = suffix.stacked(docids.symbols_NT[:, : self.steps], new_NM)
        return _docids(codes_NM, self.k, "residual", books_MKD)


@dataclasses.dataclass(frozen=True)
class Product:
    """Codes of a product quantizer.

    Attributes:
      parts: M, a divisor of the vectors' width.
      k: centroids of a part; no more than documents.
    """

    parts: int
    k: int

    needs_vectors: ClassVar[bool] = True
    needs_tokenizer: ClassVar[bool] = False

    def __post_init__(self):
        checks.check_least("parts", self.parts, 1)
        checks.check_least("k", self.k, 2)

    def assign(self, documents: Documents, seed: int) -> Docids:
        """Trains the quantizer and gives ids; raises what `Residual.assign` does, or where the width does not
        divide into `parts`."""
        vectors_ND = checks.vectors(documents, "product")
        sharding = documents.sharding
        found = product.fit(vectors_ND, self.parts, self.k, seed=seed, sharding=sharding)
        codes_NM = found.encode(vectors_ND, sharding=sharding) + 1
        return _docids(codes_NM, self.k, "product", found.codebooks_MKC)

    def extend(self, docids: Docids, documents: Documents, seed: int) -> Docids:
        """Codes more documents with the same codebooks; raises what `Residual.extend` does."""
        books_MKC = _own_books(docids, "product", self.parts, self.k)
        vectors_ND = checks.vectors(documents, "product", width=self.parts * books_MKC.shape[2])
        if not len(documents):
            return docids
        new_NM = product.Product(books_MKC).encode(vectors_ND, sharding=documents.sharding) + 1
        codes_NM = suffix.stacked(docids.symbols_NT[:, : self.parts], new_NM)
        return _docids(codes_NM, self.k, "product", books_MKC)


def _docids(codes_NM: np.ndarray, k: int, scheme: str, books: np.ndarray) -> Docids:
    symbols_NT, collisions = suffix.with_suffix(codes_NM, k - 1, first=1)
    return Docids(symbols_NT, k + 1, scheme, collisions, {_BOOKS: books})


def _own_books(docids: Docids, scheme: str, length: int, k: int) -> np.ndarray:
    checks.check_own(docids, scheme, k + 1)
    books = docids.state[_BOOKS]
    if books.shape[:2] != (length, k):
        raise DocidsError(
            f"the docids have {books.shape[0]} codebooks of {books.shape[1]}; allowed: {length} of {k}"
        )
    return books
