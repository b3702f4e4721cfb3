"""What would other queries have said? Means over queries that are drawn anew, the same ones for all systems.

Efron (1979), "Bootstrap Methods: Another Look at the Jackknife"; of retrieval measures Sakai (2006),
"Evaluating Evaluation Metrics Based on the Bootstrap". The queries alone are drawn: it says nothing of other
seeds of training.

Letters: R resamples, Q queries.
"""

from collections.abc import Mapping

import numpy as np


def means(
    systems: Mapping[str, Mapping[str, float]], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Returns by system the mean of a measure over Q queries drawn with replacement, float64 [R].

    Row r of all systems has the same queries. So whatever is made of several systems' means has a
    distribution: `(of["a"] - of["b"] > 0).mean()` is the share of resamples in which a is better.

    Args:
      systems: name -> query_id -> value of the measure.
      resamples: R.
      seed: of the draw.

    Raises:
      ValueError: systems with different queries, or without any.
    """
    first = next(iter(systems), None)
    if first is None or not systems[first]:
        raise ValueError("systems have no queries; a mean needs at least one")
    query_ids = sorted(systems[first])
    for name, values in systems.items():
        if values.keys() != systems[first].keys():
            raise ValueError(f"{name} and {first} must have the same queries")
    count = len(query_ids)
    drawn_RQ = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return {
        name: drawn_RQ @ np.array([values[query_id] for query_id in query_ids], np.float64) / count
        for name, values in systems.items()
    }
