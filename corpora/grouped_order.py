"""Which examples make the batch of a step, where those of one group, such as a topic, stand together.

It is a function of (seed, step): a restart or another number of processes changes nothing.
"""

from collections.abc import Sequence

import numpy as np

from corpora.mixture_order import MixtureOrder


class GroupedOrder:
    """The global order of examples in blocks of one group each; see `MixtureOrder`, whose domains groups are.

    Args:
      groups: int [examples], the group of each, from 0; each has `group_rows` examples at least.
      seed: of the shuffles.
      group_rows: how many rows of one group stand together; with the batch size, a batch is of one group.
      weights: of each group, in any unit; None for its share of the examples.

    Raises:
      ValueError: as `MixtureOrder` does.
    """

    def __init__(
        self, groups: np.ndarray, seed: int, group_rows: int, *, weights: Sequence[float] | None = None
    ):
        self._examples = np.argsort(groups, kind="stable")
        sizes = np.bincount(groups)
        self._order = MixtureOrder(sizes[sizes > 0], seed, weights=weights, domain_rows=group_rows)

    def rows(self, step: int, batch_size: int) -> np.ndarray:
        """Returns the examples of one step, over all processes, int64 [batch_size]."""
        return self._examples[self._order.rows(step, batch_size)]
