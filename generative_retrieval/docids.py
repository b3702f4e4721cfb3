"""Ids of documents that a decoder spells, a symbol at a time.

A symbol is a number below `size`. Symbol 0 is `END`: it closes ids where their lengths vary, and it is what a
decoder reads before the first symbol. No id is the beginning of another, so whoever has spelled an id knows
that it is whole. How documents come by their ids is the matter of `generative_retrieval.schemes`.

Letters: N documents, T symbols of the longest id.
"""

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from jax.sharding import NamedSharding

END = 0
NONE = -1  # behind the end of an id
_STATE = "state/"
_SCALARS = ("size", "scheme", "collisions")


class DocidsError(ValueError):
    """Ids that are no ids, or a file that holds none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Docids:
    """The ids of N documents, which are unique; none begins another.

    Attributes:
      symbols_NT: int32; row n spells document n, with NONE behind its end.
      size: symbols are below it.
      scheme: the name of the scheme that gave them.
      collisions: the share of documents whose code another one had too, before suffixes parted them.
      state: what the scheme needs to give ids to more documents, such as centroids.

    Raises:
      DocidsError: symbols out of range, a gap in an id, or an id that another one has or begins with.
    """

    symbols_NT: np.ndarray
    size: int
    scheme: str
    collisions: float = 0.0
    state: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check(self.symbols_NT, self.size)

    def __len__(self) -> int:
        return len(self.symbols_NT)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N], the symbols of each id, with END where it has one."""
        return (self.symbols_NT != NONE).sum(axis=1)

    def save(self, path: str | Path) -> None:
        """Writes one .npz file, which appears whole."""
        path = Path(path)
        scalars = json.dumps({name: getattr(self, name) for name in _SCALARS})
        written = io.BytesIO()
        arrays = {f"{_STATE}{name}": array for name, array in self.state.items()}
        smallest = np.min_scalar_type(-self.size)  # signed, for NONE
        np.savez_compressed(written, scalars=scalars, symbols=self.symbols_NT.astype(smallest), **arrays)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(written.getvalue())
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Docids":
        """Reads what `save` wrote.

        Raises:
          DocidsError: there is no such file, or it is not whole.
        """
        try:
            with np.load(path, allow_pickle=False) as held:
                scalars = json.loads(str(held["scalars"]))
                state = {name.removeprefix(_STATE): held[name] for name in held if name.startswith(_STATE)}
                return cls(held["symbols"].astype(np.int32), state=state, **scalars)
        except FileNotFoundError:
            raise DocidsError(f"no docids at {path}") from None
        except DocidsError as error:
            raise DocidsError(f"{path}: {error}") from None
        except Exception as error:
            raise DocidsError(f"{path} holds no docids: {error}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class Documents:
    """What a scheme may look at, in the order of the documents' rows.

    Attributes:
      doc_ids: the collection's own ids, such as URLs.
      titles: "" for none.
      texts: the texts.
      vectors_ND: float32, an embedding of each; None unless the scheme `needs_vectors`.
      tokenizer: of the experiment; None unless the scheme `needs_tokenizer`.
      sharding: over which devices vectors are clustered, a block of rows at a time; None for one.
    """

    doc_ids: Sequence[str]
    titles: Sequence[str]
    texts: Sequence[str]
    vectors_ND: np.ndarray | None = None
    tokenizer: Any = None
    sharding: NamedSharding | None = None

    def __len__(self) -> int:
        return len(self.doc_ids)


class Scheme(Protocol):
    """A way to give documents their ids, as a frozen dataclass that a config names."""

    needs_vectors: ClassVar[bool]
    needs_tokenizer: ClassVar[bool]

    def assign(self, documents: Documents, seed: int) -> Docids:
        """Gives every document an id."""

    def extend(self, docids: Docids, documents: Documents, seed: int) -> Docids:
        """Gives more documents ids; the rows of `docids` come first, unchanged.

        Args:
          docids: ids that this scheme gave.
          documents: the new ones alone.
          seed: of what is drawn.

        Raises:
          DocidsError: `docids` are those of another scheme, or there is no room for more.
        """


def _check(symbols_NT: np.ndarray, size: int) -> None:
    if symbols_NT.ndim != 2 or symbols_NT.dtype != np.int32 or not symbols_NT.size:
        shape, dtype = symbols_NT.shape, symbols_NT.dtype
        raise DocidsError(f"symbols are {dtype} {list(shape)}; allowed: int32 [N, T], of a document at least")
    shown_NT = symbols_NT != NONE
    least, most = int(symbols_NT.min()), int(symbols_NT.max())
    if least < NONE or most >= size:
        raise DocidsError(f"symbols are {least} to {most}; allowed: {NONE} (none) to {size - 1}")
    if not shown_NT[:, 0].all() or (shown_NT[:, 1:] > shown_NT[:, :-1]).any():
        row = int(np.flatnonzero(~shown_NT[:, 0] | (shown_NT[:, 1:] > shown_NT[:, :-1]).any(axis=1))[0])
        raise DocidsError(f"document {row} has the id {symbols_NT[row].tolist()}, which has a gap")
    order_N = sorted_rows(symbols_NT)
    first, second = symbols_NT[order_N[:-1]], symbols_NT[order_N[1:]]
    begins = ((first == second) | (first == NONE)).all(axis=1)  # sorted, an id stands right before its longer
    if begins.any():
        at = int(np.flatnonzero(begins)[0])
        one, other = int(order_N[at]), int(order_N[at + 1])
        raise DocidsError(
            f"document {other} has the id {spelled(symbols_NT[other])}, and document {one} the same or a "
            f"beginning of it, {spelled(symbols_NT[one])}"
        )


def spelled(symbols_T: np.ndarray) -> list[int]:
    """Returns the symbols of one id."""
    return symbols_T[symbols_T != NONE].tolist()


def sorted_rows(symbols_NT: np.ndarray) -> np.ndarray:
    """Returns the documents in the order of their ids, symbol by symbol, equal ones by row: int64 [N]."""
    size = int(symbols_NT.max(initial=0)) + 2
    return np.lexsort(tuple(_packed(symbols_NT, size))[::-1])


def _packed(symbols_NT: np.ndarray, size: int) -> list[np.ndarray]:
    """Columns of several symbols each, int64, which sort as the symbols do: fewer passes."""
    bits = max((size - 1).bit_length(), 1)
    at_once = max(62 // bits, 1)
    columns = []
    for start in range(0, symbols_NT.shape[1], at_once):
        column = np.zeros(len(symbols_NT), np.int64)
        for depth in range(start, min(start + at_once, symbols_NT.shape[1])):
            column = (column << bits) | (symbols_NT[:, depth].astype(np.int64) + 1)
        columns.append(column)
    return columns
