"""Random codes: the control of every scheme whose symbols mean something."""

import dataclasses
from typing import ClassVar

import numpy as np

from generative_retrieval.docids import Docids, DocidsError, Documents
from generative_retrieval.schemes import suffix
from generative_retrieval.schemes.checks import check_least, check_own

_NAME = "random"
_DENSE = 4  # with fewer codes a document, they are drawn from a list of all


@dataclasses.dataclass(frozen=True)
class RandomCodes:
    """Ids of one length, each drawn evenly from those that are still free.

    Attributes:
      length: symbols of an id; base**length documents have room.
      base: symbols to choose from at each place.
    """

    length: int
    base: int

    needs_vectors: ClassVar[bool] = False
    needs_tokenizer: ClassVar[bool] = False

    def __post_init__(self):
        check_least("length", self.length, 1)
        check_least("base", self.base, 2)

    def assign(self, documents: Documents, seed: int) -> Docids:
        """Gives ids. Raises DocidsError where there are more documents than codes."""
        return self._more(np.zeros((0, self.length), np.int32), len(documents), seed)

    def extend(self, docids: Docids, documents: Documents, seed: int) -> Docids:
        """Gives more ids. Raises DocidsError for ids of another scheme, or where codes run out."""
        check_own(docids, _NAME, self.base + 1)
        if docids.symbols_NT.shape[1] != self.length:
            raise DocidsError(
                f"the docids have {docids.symbols_NT.shape[1]} symbols each; allowed: length, {self.length}"
            )
        return self._more(docids.symbols_NT, len(documents), seed)

    def _more(self, taken_NT: np.ndarray, count: int, seed: int) -> Docids:
        total, capacity = len(taken_NT) + count, self.base**self.length
        if total > capacity:
            length = self.length
            while self.base**length < total:
                length += 1
            raise DocidsError(
                f"{total} documents need more than the {capacity} random codes of length {self.length} and "
                f"base {self.base}; allowed: length {length} or more with this base"
            )
        # Other draws than those that gave the earlier codes, or each would meet one of them.
        rng = np.random.default_rng((seed, len(taken_NT)) if len(taken_NT) else seed)
        if capacity < _DENSE * total:
            drawn_NT = self._from_list(taken_NT, count, rng)
        else:
            drawn_NT = self._from_all(taken_NT, count, rng)
        return Docids(np.concatenate([taken_NT, drawn_NT]), self.base + 1, _NAME)

    def _from_list(self, taken_NT: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        places_T = self.base ** np.arange(self.length - 1, -1, -1)
        free = np.ones(self.base**self.length, bool)
        free[(taken_NT.astype(np.int64) - 1) @ places_T] = False
        codes_N = rng.permutation(np.flatnonzero(free))[:count]
        return (codes_N[:, None] // places_T % self.base + 1).astype(np.int32)

    def _from_all(self, taken_NT: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws until no code is there twice; a quarter at most are drawn again each time."""
        drawn_NT = np.zeros((count, self.length), np.int32)
        again = np.arange(count)
        while len(again):
            drawn_NT[again] = rng.integers(1, self.base + 1, (len(again), self.length), np.int32)
            earlier_N = suffix.numbers(np.concatenate([taken_NT, drawn_NT]))[len(taken_NT) :]
            again = np.flatnonzero(earlier_N)
        return drawn_NT
