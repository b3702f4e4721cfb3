"""How alike two rankings are, whatever is relevant."""

from eval import measures


def rank_biased_overlap(first: measures.Run, second: measures.Run, *, p: float = 0.9) -> dict[str, float]:
    """Returns the extrapolated rank-biased overlap of two runs by query, 0 to 1.

        RBO = A_k p^k + (1 - p) / p * sum_(d = 1..k) A_d p^d

    where A_d is the share of the first d documents that both rankings have, and k their length, that of the
    shorter one: agreement beyond is taken to be that at k. Webber et al. (2010), "A Similarity Measure for
    Indefinite Rankings".

    Args:
      first: a run; documents of equal score are in the order of `measures.rank`.
      second: another; queries that only one has are left out. A query for which neither has a document
        counts 1, and one for which only one has some 0.
      p: how much each rank counts of the one before it; at 0.9 the first ten ranks have 86% of the weight.

    Raises:
      ValueError: p is not between 0 and 1, or the runs share no query.

    >>> ranked = lambda ids: {d: -float(i) for i, d in enumerate(ids)}
    >>> print(f"{rank_biased_overlap({'q': ranked('ab')}, {'q': ranked('ba')}, p=0.5)['q']:.2f}")
    0.50
    """
    if not 0 < p < 1:
        raise ValueError(f"p is {p}; allowed: above 0, below 1")
    shared = [query_id for query_id in first if query_id in second]
    if not shared:
        raise ValueError("the runs share no query")
    return {
        query_id: _extrapolated(measures.rank(first[query_id]), measures.rank(second[query_id]), p)
        for query_id in shared
    }


def _extrapolated(first: list[str], second: list[str], p: float) -> float:
    depth = min(len(first), len(second))
    if not depth:
        return float(len(first) == len(second))
    seen_first, seen_second, both, total, agreement = set(), set(), 0, 0.0, 0.0
    for rank, (one, other) in enumerate(zip(first, second, strict=False), 1):
        seen_first.add(one)
        seen_second.add(other)
        both += (
            (one == other) + (one != other and one in seen_second) + (one != other and other in seen_first)
        )
        agreement = both / rank
        total += agreement * p**rank
    return agreement * p**depth + (1 - p) / p * total
