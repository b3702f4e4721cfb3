"""What schemes check where values enter."""

import numpy as np

from generative_retrieval.docids import Docids, DocidsError, Documents


def check_least(field: str, value: int, least: int) -> None:
    """Raises a ValueError naming a scheme's field unless its value is at least so much."""
    if value < least:
        raise ValueError(f"{field} is {value}; it must be at least {least}")


def check_own(docids: Docids, scheme: str, size: int) -> None:
    """Raises a DocidsError unless ids are of this scheme, with the symbols of its settings."""
    if (docids.scheme, docids.size) != (scheme, size):
        raise DocidsError(
            f"the docids are of the scheme {docids.scheme!r} with {docids.size} symbols; allowed: {scheme!r} "
            f"with {size}"
        )


def vectors(documents: Documents, scheme: str, width: int | None = None) -> np.ndarray:
    """Returns the documents' vectors [N, D].

    Raises:
      DocidsError: there are none, not one for each document, or they are not `width` wide.
    """
    x_ND = documents.vectors_ND
    if x_ND is None:
        raise DocidsError(f"the scheme {scheme!r} needs vectors of the documents; there are none")
    if x_ND.ndim != 2 or len(x_ND) != len(documents):
        raise DocidsError(f"vectors are {list(x_ND.shape)}; allowed: [{len(documents)}, width]")
    if width is not None and x_ND.shape[1] != width:
        raise DocidsError(
            f"vectors are {x_ND.shape[1]} wide; allowed: {width}, as those were that the docids are made from"
        )
    return x_ND
