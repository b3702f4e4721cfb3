"""Symbols that mean something else at each place: the "2D semantic" ids of Pradeep et al., 2023, "How Does
Generative Retrieval Scale to Millions of Passages?", after Wang et al., 2022, "A Neural Corpus Indexer for
Document Retrieval".

Letters: N documents, T symbols of the longest id.
"""

import dataclasses

import numpy as np

from generative_retrieval.docids import END, Docids, DocidsError, Documents, Scheme
from generative_retrieval.schemes.checks import check_least

_POSITIONS, _INNER_SIZE = "by_position.positions", "by_position.size"
_SUFFIX = " by position"


@dataclasses.dataclass(frozen=True)
class ByPosition:
    """The ids of another scheme, where symbol c at place t becomes t * (size - 1) + c; END stays.

    Ids of later documents may be longer than those of the first. What is behind the last position that has
    symbols of its own shares them.

    Attributes:
      scheme: of one place's symbols, such as `semantic.Semantic`.
      positions: with symbols of their own, so that a vocabulary can be chosen before the documents are seen;
        0 for as many as the longest of the first ids has.
    """

    scheme: Scheme
    positions: int = 0

    def __post_init__(self):
        check_least("positions", self.positions, 0)

    @property
    def needs_vectors(self) -> bool:
        return self.scheme.needs_vectors

    @property
    def needs_tokenizer(self) -> bool:
        return self.scheme.needs_tokenizer

    def assign(self, documents: Documents, seed: int) -> Docids:
        """Gives ids. Raises DocidsError where ids are longer than `positions`, and what the scheme raises."""
        inner = self.scheme.assign(documents, seed)
        length = inner.symbols_NT.shape[1]
        if self.positions and length > self.positions:
            raise DocidsError(
                f"positions is {self.positions}; allowed: {length} or more, for ids of the scheme "
                f"{inner.scheme!r} have {length} symbols, or 0"
            )
        return _outer(inner, self.positions or length)

    def extend(self, docids: Docids, documents: Documents, seed: int) -> Docids:
        """Gives more ids. Raises DocidsError for ids of another scheme, and what the scheme raises."""
        if _POSITIONS not in docids.state:
            raise DocidsError(f"the docids are of the scheme {docids.scheme!r}; allowed: one by position")
        positions = int(docids.state[_POSITIONS])
        if self.positions not in (0, positions):
            raise DocidsError(f"the docids have {positions} positions; allowed: {self.positions}")
        return _outer(self.scheme.extend(_inner(docids), documents, seed), positions)


def _outer(inner: Docids, positions: int) -> Docids:
    places_T = np.minimum(np.arange(inner.symbols_NT.shape[1]), positions - 1) * (inner.size - 1)
    symbols_NT = np.where(inner.symbols_NT > END, inner.symbols_NT + places_T, inner.symbols_NT)
    state = {**inner.state, _POSITIONS: np.int64(positions), _INNER_SIZE: np.int64(inner.size)}
    return dataclasses.replace(
        inner,
        symbols_NT=symbols_NT.astype(np.int32),
        size=positions * (inner.size - 1) + 1,
        scheme=inner.scheme + _SUFFIX,
        state=state,
    )


def _inner(outer: Docids) -> Docids:
    positions, size = int(outer.state[_POSITIONS]), int(outer.state[_INNER_SIZE])
    places_T = np.minimum(np.arange(outer.symbols_NT.shape[1]), positions - 1) * (size - 1)
    symbols_NT = np.where(outer.symbols_NT > END, outer.symbols_NT - places_T, outer.symbols_NT)
    state = {name: array for name, array in outer.state.items() if name not in (_POSITIONS, _INNER_SIZE)}
    return dataclasses.replace(
        outer,
        symbols_NT=symbols_NT.astype(np.int32),
        size=size,
        scheme=outer.scheme.removesuffix(_SUFFIX),
        state=state,
    )
