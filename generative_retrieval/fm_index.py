"""An FM-index over the token ids of a corpus: which n-grams occur, how they go on, and where they stand.

It answers from the Burrows-Wheeler transform of the text (Ferragina and Manzini, 2000, "Opportunistic Data
Structures with Applications"): the rows are all suffixes in sorted order, an n-gram is a run of rows, and a
step of backward search narrows the run to what one more token in front leaves of it. A decoder writes from
left to right, so each document stands here reversed, as in SEAL (Bevilacqua et al., 2022, "Autoregressive
Search Engines: Generating Substrings as Document Identifiers"): a token in front in the index is a token
behind in the text. A mark closes every document, and no n-gram goes past it.

The usual counts at checkpoints, a count of each symbol every so many rows, would take more memory than the
text where symbols are tens of thousands. Instead the rows of each symbol are listed in order: how often it
occurs before a row is a search by halves in its list.

On the host, in NumPy. A token of the corpus takes 10 bytes where its vocabulary is below 65,535, else 12.

Letters: L tokens of the corpus, D documents, R = L + D rows.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from corpora.tables import DataError

_MARK = 0  # closes a document; token t is symbol t + 1
_FIELDS = ("bwt_R", "suffixes_R", "offsets")


class Run(NamedTuple):
    """The rows `low` to `high`, without the last, that begin with an n-gram of `length` tokens."""

    low: int
    high: int
    length: int

    @property
    def count(self) -> int:
        """How often the n-gram occurs."""
        return self.high - self.low


@dataclasses.dataclass(frozen=True, eq=False)
class FMIndex:
    """Made by `build`, or by `load`.

    Attributes:
      bwt_R: unsigned, the symbol in front of each sorted suffix.
      suffixes_R: int32, where each sorted suffix begins among the reversed documents.
      offsets: int64 [D + 1], where each document begins among the corpus's tokens.
    """

    bwt_R: np.ndarray
    suffixes_R: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        """Tokens of the corpus."""
        return int(self.offsets[-1])

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        arrays = (self.bwt_R, self.suffixes_R, self.offsets, self._rows_R, self._firsts, *self._everything)
        return sum(array.nbytes for array in arrays)

    @property
    def everything(self) -> Run:
        """The run of the empty n-gram."""
        return Run(0, len(self.bwt_R), 0)

    def extend(self, run: Run, token: int) -> Run:
        """The run of an n-gram with one more token behind it; one of no rows where that does not occur."""
        symbol = token + 1
        if not 0 < symbol < len(self._firsts) - 1:
            return Run(0, 0, run.length + 1)
        first, end = self._firsts[symbol : symbol + 2].tolist()
        low, high = np.searchsorted(self._rows_R[first:end], (run.low, run.high)).tolist()
        return Run(first + low, first + high, run.length + 1)

    def find(self, ngram: Sequence[int]) -> Run:
        """The run of an n-gram of token ids."""
        run = self.everything
        for token in ngram:
            run = self.extend(run, int(token))
            if not run.count:
                return Run(0, 0, len(ngram))
        return run

    def count(self, ngram: Sequence[int]) -> int:
        """How often an n-gram occurs in the corpus; the empty one, once for every token."""
        return self.find(ngram).count if len(ngram) else len(self)

    def following(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that stand behind an n-gram somewhere, ascending, and how often: int64 arrays."""
        if run == self.everything:
            return self._everything
        return self._symbols(run)

    def occurrences(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
        """Where an n-gram of a token or more stands.

        Returns:
          The documents' rows, and the place in its document of each occurrence's first token: int64 arrays,
          ordered by document and place.
        """
        places = self.suffixes_R[run.low : run.high].astype(np.int64)
        documents = np.searchsorted(self._starts, places, side="right") - 1
        lengths = np.diff(self.offsets)[documents]
        begins = lengths - (places - self._starts[documents]) - run.length
        order = np.lexsort((begins, documents))
        return documents[order], begins[order]

    def documents(self, ngram: Sequence[int]) -> np.ndarray:
        """The rows of the documents that have an n-gram, ascending: int64."""
        return np.unique(self.occurrences(self.find(ngram))[0])

    def save(self, path: str | Path) -> None:
        """Writes one .npz file, which appears whole."""
        path = Path(path)
        partial = path.with_name(f"{path.name}.partial.npz")
        np.savez(partial, **{name: getattr(self, name) for name in _FIELDS})
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "FMIndex":
        """Reads what `save` wrote.

        Raises:
          DataError: there is no such file, or it is not whole.
        """
        try:
            with np.load(path, allow_pickle=False) as held:
                return cls(**{name: held[name] for name in _FIELDS})
        except FileNotFoundError:
            raise DataError(f"no FM-index at {path}") from None
        except Exception as error:
            raise DataError(f"{path} holds no FM-index: {error}") from None

    @functools.cached_property
    def _firsts(self) -> np.ndarray:
        """int64 [symbols + 1], the first row of the suffixes that begin with each symbol."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.bwt_R))])

    @functools.cached_property
    def _rows_R(self) -> np.ndarray:
        """int32, the rows of each symbol of the transform, symbol after symbol."""
        return np.argsort(self.bwt_R, kind="stable").astype(np.int32)

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """int64 [D], where each document begins among the reversed ones, which have marks between them."""
        return self.offsets[:-1] + np.arange(self.num_documents)

    @functools.cached_property
    def _everything(self) -> tuple[np.ndarray, np.ndarray]:
        return self._symbols(self.everything)

    def _symbols(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
        symbols = self.bwt_R[run.low : run.high]
        if 8 * len(symbols) < len(self._firsts):  # counting has to go over the whole vocabulary
            tokens, counts = np.unique(symbols, return_counts=True)
            tokens = tokens.astype(np.int64)
        else:
            counted = np.bincount(symbols)
            tokens = np.flatnonzero(counted)
            counts = counted[tokens]
        kept = tokens != _MARK
        return tokens[kept] - 1, counts[kept]


def build(tokens: np.ndarray, offsets: np.ndarray) -> FMIndex:
    """Indexes documents.

    Args:
      tokens: integers [L] of 0 and above, the documents one after another.
      offsets: integers [D + 1], where each document begins, and L.

    Raises:
      ValueError: there is no token, one is below 0, or offsets do not go up from 0 to L.
    """
    tokens, offsets = np.asarray(tokens), np.asarray(offsets, np.int64)
    if not len(tokens) or tokens.min() < 0:
        least = tokens.min() if len(tokens) else "none"
        raise ValueError(f"the least token is {least}; allowed: at least one token, none below 0")
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets are {offsets}; allowed: ascending from 0 to {len(tokens)}, the tokens")
    lengths = np.diff(offsets)
    num_documents = len(lengths)
    symbols_R = np.full(len(tokens) + num_documents, _MARK, np.int64)
    of_token = np.repeat(np.arange(num_documents), lengths)
    reversed_place = (offsets[:-1] + offsets[1:] - 1)[of_token] - np.arange(len(tokens)) + of_token
    symbols_R[reversed_place] = tokens.astype(np.int64) + 1
    # Marks sort by document. So no two suffixes are alike, nor compared beyond the end of a document.
    keys_R = symbols_R + (num_documents - 1)
    keys_R[symbols_R == _MARK] = np.arange(num_documents)
    suffixes_R = suffix_array(keys_R)
    bwt_R = symbols_R[suffixes_R - 1]  # in front of the first stands the last, a mark
    return FMIndex(bwt_R.astype(np.min_scalar_type(int(symbols_R.max()))), suffixes_R, offsets)


def suffix_array(keys: np.ndarray) -> np.ndarray:
    """The suffixes of a sequence in sorted order: int32 [R].

    By prefix doubling (Larsson and Sadakane, 2007, "Faster suffix sorting"): suffixes sorted by their first h
    keys are sorted by 2h through the ranks of those that begin h later, and those that stand alone are left
    out of the rounds that follow. O(R log R) in each of as many rounds as the longest repetition has bits.

    Args:
      keys: int64 [R], 0 and above; every suffix has to differ from the others before any of them ends, as
        where the last key occurs once.

    Raises:
      ValueError: there are 2^31 keys or more.
    """
    if len(keys) >= 2**31:
        raise ValueError(f"there are {len(keys)} keys; allowed: fewer than {2**31}")
    order = np.argsort(keys, kind="stable")
    slots = np.arange(len(keys))  # places in `order` that are not settled
    rank = np.empty(len(keys), np.int64)  # of a suffix: the first slot of those that are equal so far
    members, sorted_by = order, keys[order]
    depth = 1
    while True:
        begins = np.concatenate([[True], sorted_by[1:] != sorted_by[:-1]])
        rank[members] = slots[np.maximum.accumulate(np.where(begins, np.arange(len(slots)), 0))]
        alone = begins & np.concatenate([begins[1:], [True]])
        slots, members = slots[~alone], members[~alone]
        if not len(slots):
            return order.astype(np.int32)
        sorted_by = rank[members] * len(keys) + rank[members + depth]
        within = np.argsort(sorted_by)
        members, sorted_by = members[within], sorted_by[within]
        order[slots] = members
        depth *= 2
