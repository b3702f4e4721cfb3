"""Is one system better than another, or were these queries kind to it? Paired tests over queries.

Smucker, Allan and Carterette, 2007, "A comparison of statistical significance tests for information retrieval
evaluation", find that the randomization test and Student's t-test agree, and that the Wilcoxon and sign tests
mislead.

Both tests take the values of one measure, query_id -> value, of two systems over the same queries. Their p is
two-sided. Testing many systems or measures calls for a correction: `holm`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

_CHUNK = 1 << 21  # sign flips drawn at once: 16 MB as float64


def randomization_test(
    first: Mapping[str, float], second: Mapping[str, float], *, samples: int = 100_000, seed: int = 0
) -> float:
    """p of the paired randomization (sign-flip) test on the difference of the means.

    Were the systems alike, each query's two values could as well be swapped. p is the share of swappings
    whose difference is at least as large, in absolute value, as the one observed. With n queries that differ
    there are 2^n swappings: all are counted if there are no more than `samples`, and p is exact. Otherwise
    `samples` of them are drawn and p = (1 + hits) / (1 + samples): what was observed is itself one of them,
    so p is never 0 (Phipson and Smyth, 2010, "Permutation p-values should never be zero").

    Takes about a second for 2,500 queries and the 100,000 samples of Smucker, Allan and Carterette (2007).

    Returns:
      p in (0, 1]; 1.0 where no query differs.

    Raises:
      ValueError: different queries, none at all, a value that is not finite, samples < 1.

    >>> randomization_test({"q1": 0.5, "q2": 0.75, "q3": 1.0}, {"q1": 0.25, "q2": 0.25, "q3": 0.25})
    0.25
    """
    if samples < 1:
        raise ValueError(f"samples is {samples!r}; it must be >= 1")
    difference_Q = _differences(first, second)
    difference_Q = difference_Q[difference_Q != 0]  # swapping equal values changes nothing
    total = difference_Q.sum()
    # Swappings that tie with the observed one must count, whatever order rounding added them in.
    threshold = abs(total) - 1e-9 * np.abs(difference_Q).sum()

    n = difference_Q.size
    if 2**n <= samples:
        flipped = np.zeros(1)  # the sum of every subset of the differences
        for value in difference_Q:
            flipped = np.concatenate([flipped, flipped + value])
        return float(np.mean(np.abs(total - 2 * flipped) >= threshold))

    rng = np.random.default_rng(seed)
    hits = 0
    step = max(1, _CHUNK // n)
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        random_bytes = np.frombuffer(rng.bytes(rows * -(-n // 8)), np.uint8).reshape(rows, -1)
        flips_SQ = np.unpackbits(random_bytes, axis=1, count=n)
        hits += int(np.count_nonzero(np.abs(total - 2 * (flips_SQ @ difference_Q)) >= threshold))
    return (1 + hits) / (1 + samples)


def t_test(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """p of Student's paired t-test on the difference of the means (that of scipy.stats.ttest_rel).

    Returns:
      p in [0, 1]; 1.0 where no query differs, 0.0 where all differ by the same amount.

    Raises:
      ValueError: different queries, fewer than two, a value that is not finite.
    """
    difference_Q = _differences(first, second)
    if difference_Q.size < 2:
        raise ValueError(f"first and second have {difference_Q.size} query; a t-test needs at least 2")
    if np.ptp(difference_Q) == 0:  # no variance: t is 0/0 or infinite
        return 1.0 if difference_Q[0] == 0 else 0.0
    return float(scipy.stats.ttest_1samp(difference_Q, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects the p-values of several tests: below a corrected 0.05, any false claim at all has 5% at most.

    The i-th smallest of m becomes the largest of (m - j + 1) p_j over j <= i, at most 1. Nothing is asked of
    how the tests depend on each other; no corrected p is above m p, which is Bonferroni's.

    Holm, 1979, "A simple sequentially rejective multiple test procedure".

    Args:
      p_values: of all the tests that were made, not only of those to be claimed.

    Returns:
      the corrected p-values, in the order given.

    Raises:
      ValueError: a value outside [0, 1].

    >>> holm([0.03, 0.01, 0.04])
    [0.06, 0.03, 0.06]
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"p_values has {p!r}; allowed: 0 to 1")
    corrected, largest = [0.0] * len(p_values), 0.0
    for smaller, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - smaller) * p_values[i]))
        corrected[i] = largest
    return corrected


def _differences(first: Mapping[str, float], second: Mapping[str, float]) -> np.ndarray:
    """first - second, float64 [Q], by sorted query id, so that the seed alone decides the draw."""
    if first.keys() != second.keys():
        only_first, only_second = sorted(first.keys() - second.keys()), sorted(second.keys() - first.keys())
        raise ValueError(
            "first and second must have the same queries; "
            f"only in first: {len(only_first)} {only_first[:5]}, "
            f"only in second: {len(only_second)} {only_second[:5]}"
        )
    if not first:
        raise ValueError("first and second have no queries; a test needs some")
    query_ids = sorted(first)
    sides = []
    for name, values in (("first", first), ("second", second)):
        values_Q = np.array([values[query_id] for query_id in query_ids], np.float64)
        if not np.isfinite(values_Q).all():
            query_id = query_ids[int((~np.isfinite(values_Q)).argmax())]
            raise ValueError(f"{name}[{query_id!r}] is {values[query_id]!r}; it must be finite")
        sides.append(values_Q)
    return sides[0] - sides[1]
