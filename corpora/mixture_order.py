"""Which examples make the batch of a step, where they come from several domains: of text, or of kinds.

It is a function of (seed, step): a restart or another number of processes changes nothing.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from corpora.batches import Order

_ROUNDS = 2  # tells the random numbers of rounds from those of epochs and windows


class MixtureOrder:
    """The global order of examples: domains take turns as they are weighed, each in a shuffle of its own.

    The rows of all batches are one sequence of blocks of `domain_rows` rows of one domain. A round has as
    many blocks as all examples make; how many of them a domain has is fixed by its weight (largest
    remainders), and their order is shuffled in each round. A domain's examples are all seen once before any
    is seen again. Without weights a round sees each example once, but for what is left of a domain's last
    block, which comes first in the next round.

    Args:
      sizes: examples of each domain, which are numbered in this order.
      seed: of the shuffles.
      weights: of each domain, in any unit; None for its share of the examples.
      domain_rows: how many rows of one domain stand together, such as those of a micro-batch; 1 mixes all.

    Raises:
      ValueError: `domain_rows` is below 1, or there are fewer examples in a domain; or a weight is so small
        that it comes to no rows.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        seed: int,
        *,
        weights: Sequence[float] | None = None,
        domain_rows: int = 1,
    ):
        smallest = min(sizes)
        if not 1 <= domain_rows <= smallest:
            raise ValueError(
                f"domain_rows is {domain_rows}; allowed: 1 to {smallest}, the examples of the smallest domain"
            )
        self._seed, self._block = seed, domain_rows
        self._orders = [Order(int(size), seed) for size in sizes]
        self._first = np.cumsum([0, *sizes])[:-1]
        blocks = np.asarray(sizes) // domain_rows
        self._blocks = blocks if weights is None else apportioned(int(blocks.sum()), weights)
        for domain, size in enumerate(self._blocks):
            if not size and weights[domain] > 0:
                raise ValueError(
                    f"weights has {weights[domain]} for domain {domain}, of {sum(weights)}; allowed: enough "
                    f"for one of the {int(self._blocks.sum())} blocks of a round, or 0"
                )
        self._round = functools.lru_cache(maxsize=2)(self._shuffled)

    @property
    def shares(self) -> np.ndarray:
        """The share of each domain in the rows of a round, float64."""
        return self._blocks / self._blocks.sum()

    def rows(self, step: int, batch_size: int) -> np.ndarray:
        """Returns the examples of one step, over all processes, int64 [batch_size].

        Raises:
          ValueError: blocks do not divide the batch.
        """
        if batch_size % self._block:
            raise ValueError(f"batch_size is {batch_size}; allowed: a multiple of domain_rows, {self._block}")
        blocks = batch_size // self._block
        start, end = step * blocks, (step + 1) * blocks
        parts, whole = [], int(self._blocks.sum())
        while start < end:
            number, first = divmod(start, whole)
            parts.append(self._of_round(number, first, min(whole, first + end - start)))
            start += len(parts[-1]) // self._block
        return np.concatenate(parts)

    def _of_round(self, number: int, start: int, end: int) -> np.ndarray:
        """The examples of blocks start ... end - 1 of a round."""
        found = np.empty((end - start, self._block), np.int64)
        for domain, places in enumerate(self._round(number)):
            before, after = np.searchsorted(places, (start, end))
            if after > before:
                done = number * len(places)
                rows = self._orders[domain].between(
                    (done + before) * self._block, (done + after) * self._block
                )
                found[places[before:after] - start] = self._first[domain] + rows.reshape(-1, self._block)
        return found.reshape(-1)

    def _shuffled(self, number: int) -> list[np.ndarray]:
        """The blocks of a round that each domain has, ascending."""
        blocks = np.random.default_rng((self._seed, number, _ROUNDS)).permutation(int(self._blocks.sum()))
        return [np.sort(part) for part in np.split(blocks, np.cumsum(self._blocks)[:-1])]


def apportioned(total: int, weights: Sequence[float]) -> np.ndarray:
    """Returns int64, `total` shared out by weights: rounded down, and one more for the largest remainders.

    >>> apportioned(10, [1.0, 1.0, 1.0])
    array([4, 3, 3])
    """
    exact = total * np.asarray(weights, np.float64) / np.sum(weights)
    shares = np.floor(exact).astype(np.int64)
    left = total - int(shares.sum())
    shares[np.argsort(-(exact - shares), kind="stable")[:left]] += 1
    return shares


def weights_of(weights: Mapping[str, float], domains: Sequence[str]) -> list[float] | None:
    """Returns the weights in the order of domains, or None where there are none."""
    return [float(weights[domain]) for domain in domains] if weights else None
