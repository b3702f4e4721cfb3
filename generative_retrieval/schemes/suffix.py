"""Codes that several documents share become ids by a number among those that share it.

The first document with a code, in the order of rows, has the number 0, the next 1, and so on. Every id ends
with its number, also that of a document which is alone with its code: so a later document with the same code
leaves the ids that were given as they are, and ids stay prefix-free without END.

A number says itself where it ends. With `base` digits, 0 to base - 1 are one digit; the next base**2 numbers
are the symbol MORE and two digits, the next base**3 twice MORE and three digits. So there is always room for
one more, and it takes base + 1 symbols: first + digit, and first + base for MORE.

    base 10:   0 -> [0]   9 -> [9]   10 -> [MORE, 0, 0]   109 -> [MORE, 9, 9]   110 -> [MORE, MORE, 0, 0, 0]

Where a number can follow only codes that are whole, as behind codes of one length or at the leaves of a tree,
its symbols may be those of the codes too. Otherwise they are symbols of their own.

Letters: N documents, T symbols of the longest code or id, S symbols of the longest number.
"""

from typing import NamedTuple

import numpy as np

from generative_retrieval.docids import NONE, sorted_rows


class Suffixed(NamedTuple):
    """Attributes:
    symbols_NT: int32, the code, the number, and NONE behind it.
    collisions: the share of the documents whose code another one has too.
    """

    symbols_NT: np.ndarray
    collisions: float


def with_suffix(codes_NT: np.ndarray, base: int, first: int) -> Suffixed:
    """Appends to each code its number among the equal ones.

    What rows get does not depend on the rows behind them. So codes of later documents are put behind the
    codes that were there, and all are numbered anew.

    Args:
      codes_NT: int32, NONE behind a code; T may be 0.
      base: digits, 1 or more.
      first: the symbol of digit 0. From it on are symbols that occur in no code, unless all codes are whole
        where a number follows, see above.

    Example:
      >>> with_suffix(np.array([[5, 7], [5, 8], [5, 7]], np.int32), base=10, first=1).symbols_NT.tolist()
      [[5, 7, 1], [5, 8, 1], [5, 7, 2]]
    """
    numbers_N = numbers(codes_NT)
    shared = int((numbers_N == 1).sum() + (numbers_N > 0).sum())  # the first of a code, and those behind it
    digits_NS = digits(numbers_N, base)
    suffix_NS = np.where(digits_NS == NONE, NONE, digits_NS + first)
    return Suffixed(joined(codes_NT, suffix_NS.astype(np.int32)), shared / max(len(codes_NT), 1))


def numbers(codes_NT: np.ndarray) -> np.ndarray:
    """Returns how many rows before each have the same code: int64 [N]."""
    N = len(codes_NT)
    if not codes_NT.shape[1]:
        return np.arange(N)
    order_N = sorted_rows(codes_NT)
    sorted_NT = codes_NT[order_N]
    begins_N = np.ones(N, bool)  # whether a code is the first of its kind
    begins_N[1:] = (sorted_NT[1:] != sorted_NT[:-1]).any(axis=1)
    first = np.flatnonzero(begins_N)
    found_N = np.empty(N, np.int64)
    found_N[order_N] = np.arange(N) - np.repeat(first, np.diff(first, append=N))
    return found_N


def digits(numbers_N: np.ndarray, base: int) -> np.ndarray:
    """Returns the digits of numbers, `base` for MORE, NONE behind them: int32 [N, S]."""
    left_N, mores = numbers_N.astype(np.int64), 0
    more_N = np.zeros(len(left_N), np.int64)  # how many MORE begin a number
    while (longer_N := (more_N == mores) & (left_N >= base ** (mores + 1))).any():
        left_N = np.where(longer_N, left_N - base ** (mores + 1), left_N)
        more_N += longer_N
        mores += 1
    digits_NS = np.full((len(left_N), 2 * mores + 1), NONE, np.int32)
    for count in range(mores + 1):
        rows = np.flatnonzero(more_N == count)
        digits_NS[rows, :count] = base
        places = base ** np.arange(count, -1, -1, dtype=np.int64)
        digits_NS[rows, count : 2 * count + 1] = left_N[rows, None] // places % base
    return digits_NS


def joined(codes_NT: np.ndarray, suffix_NS: np.ndarray) -> np.ndarray:
    """Puts the second sequence of each row behind the first, as near as it can be: int32, NONE at the end."""
    lengths_N = (codes_NT != NONE).sum(axis=1)
    ends_N = lengths_N + (suffix_NS != NONE).sum(axis=1)
    both_NT = np.full((len(codes_NT), int(ends_N.max(initial=0))), NONE, np.int32)
    kept = min(codes_NT.shape[1], both_NT.shape[1])
    both_NT[:, :kept] = codes_NT[:, :kept]
    for place in range(suffix_NS.shape[1]):
        rows = np.flatnonzero(suffix_NS[:, place] != NONE)
        both_NT[rows, lengths_N[rows] + place] = suffix_NS[rows, place]
    return both_NT


def stacked(first_NT: np.ndarray, second_NT: np.ndarray) -> np.ndarray:
    """Puts the rows of the second behind those of the first, the shorter ones with NONE behind: int32."""
    width = max(first_NT.shape[1], second_NT.shape[1])
    both_NT = np.full((len(first_NT) + len(second_NT), width), NONE, np.int32)
    both_NT[: len(first_NT), : first_NT.shape[1]] = first_NT
    both_NT[len(first_NT) :, : second_NT.shape[1]] = second_NT
    return both_NT
