"""What the quantizers share: checks of their arguments and of codes, and the error of a reconstruction.

Letters: N vectors, D width, M codes of a vector, B rows of a block.
"""

from collections.abc import Callable

import numpy as np

from clustering.rows import Rows, block_size, check_count

_SAMPLE = 256  # vectors a centroid to train on, as many as FAISS takes


def checked_codes(codes_NM, count: int, size: int) -> np.ndarray:
    """Returns the codes, or raises a ValueError unless they are integers [N, count] from 0 to size - 1."""
    codes_NM = np.asarray(codes_NM)
    if codes_NM.ndim != 2 or codes_NM.shape[1] != count or not np.issubdtype(codes_NM.dtype, np.integer):
        raise ValueError(f"codes are {codes_NM.dtype} {codes_NM.shape}; allowed: integers [vectors, {count}]")
    if codes_NM.size and (codes_NM.min() < 0 or codes_NM.max() >= size):
        raise ValueError(f"codes are {codes_NM.min()} to {codes_NM.max()}; allowed: 0 to {size - 1}")
    return codes_NM


def checked_sample(sample: int | None, k: int, count: int) -> int:
    """Returns how many of `count` vectors to train k centroids on: by default 256 k, or all there are.

    Raises:
      ValueError: k is above `count`, or the sample below k.
    """
    check_count("k", k, 1, count)
    sample = min(_SAMPLE * k if sample is None else sample, count)
    check_count("sample", sample, k)
    return sample


def mean_squared_distance(rows: Rows, codes_NM: np.ndarray, decode: Callable) -> float:
    """Returns the mean squared distance of vectors from what `decode` makes of their codes."""
    size, total = block_size(len(rows), rows.width, None), 0.0
    for start in range(0, len(rows), size):
        away_BD = rows.read(start, start + size) - decode(codes_NM[start : start + size])
        total += float(np.square(away_BD).sum(dtype=np.float64))
    return total / len(rows)
