"""One symbol a document: its row (Tay et al., 2022, "Transformer Memory as a Differentiable Search Index",
unstructured atomic identifiers)."""

import dataclasses
from typing import ClassVar

import numpy as np

from generative_retrieval.docids import Docids, DocidsError, Documents
from generative_retrieval.schemes.checks import check_least, check_own

_NAME = "atomic"


@dataclasses.dataclass(frozen=True)
class Atomic:
    """The id of row n is the one symbol n + 1.

    Attributes:
      capacity: documents there may ever be, so that later ones have a symbol; 0 for those of the start.
    """

    capacity: int = 0

    needs_vectors: ClassVar[bool] = False
    needs_tokenizer: ClassVar[bool] = False

    def __post_init__(self):
        check_least("capacity", self.capacity, 0)

    def assign(self, documents: Documents, seed: int) -> Docids:
        """Gives ids; nothing is drawn. Raises DocidsError where there are more documents than `capacity`."""
        return _docids(len(documents), self.capacity or len(documents))

    def extend(self, docids: Docids, documents: Documents, seed: int) -> Docids:
        """Gives more ids. Raises DocidsError where there is no symbol left for them."""
        check_own(docids, _NAME, self.capacity + 1 if self.capacity else docids.size)
        return _docids(len(docids) + len(documents), docids.size - 1)


def _docids(count: int, capacity: int) -> Docids:
    if count > capacity:
        raise DocidsError(
            f"atomic docids have room for {capacity} documents; {count} need a capacity of at least {count}, "
            "set when the docids are first given"
        )
    return Docids(np.arange(1, count + 1, dtype=np.int32)[:, None], capacity + 1, _NAME)
