"""The row as a numeral (Tay et al., 2022, "Transformer Memory as a Differentiable Search Index", naively
structured string identifiers: arbitrary unique integers, spelled).

A collection whose rows lie near those they are like, such as the sections of one story, gives naive ids that
tell something; `random_codes` tells nothing.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from generative_retrieval.docids import END, NONE, Docids, Documents
from generative_retrieval.schemes.checks import check_least, check_own

_NAME = "naive"


@dataclasses.dataclass(frozen=True)
class Naive:
    """The id of a row is its number's digits, the greatest place first and no zeros before it, then END.

    Numerals are not padded to one width, as those of the paper are not, so that there is always room for
    more documents.

    Attributes:
      base: of the numerals, 2 or more. Words of a text model hold several decimal digits; 1000 is nearer to
        that than 10.

    Example:
      >>> documents = Documents([""] * 11, [""] * 11, [""] * 11)
      >>> Naive().assign(documents, seed=0).symbols_NT[[0, 9, 10]].tolist()
      [[1, 0, -1], [10, 0, -1], [2, 1, 0]]
    """

    base: int = 10

    needs_vectors: ClassVar[bool] = False
    needs_tokenizer: ClassVar[bool] = False

    def __post_init__(self):
        check_least("base", self.base, 2)

    def assign(self, documents: Documents, seed: int) -> Docids:
        """Gives ids; nothing is drawn."""
        return self._docids(len(documents))

    def extend(self, docids: Docids, documents: Documents, seed: int) -> Docids:
        """Gives more ids. Raises DocidsError for ids of another scheme."""
        check_own(docids, _NAME, self.base + 1)
        return self._docids(len(docids) + len(documents))

    def _docids(self, count: int) -> Docids:
        rows_N, lengths_N = np.arange(count), np.ones(count, np.int64)
        while self.base ** int(lengths_N[-1]) < count:
            lengths_N += rows_N >= self.base ** int(lengths_N[-1])
        symbols_NT = np.full((count, int(lengths_N[-1]) + 1), NONE, np.int32)
        for place in range(int(lengths_N[-1])):
            spelled = np.flatnonzero(place < lengths_N)
            worth = self.base ** (lengths_N[spelled] - 1 - place)
            symbols_NT[spelled, place] = rows_N[spelled] // worth % self.base + 1
        symbols_NT[rows_N, lengths_N] = END
        return Docids(symbols_NT, self.base + 1, _NAME)
