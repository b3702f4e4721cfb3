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
      weights: of each group, in any unit; () for its share of the examples.

    Raises:
      ValueError: a group has too few examples, the weights are not one a group, or as `MixtureOrder`.
    """

    def __init__(self, groups: np.ndarray, seed: int, group_rows: int, *, weights: Sequence[float] = ()):
        self._examples = np.argsort(groups, kind="stable")
        sizes = np.bincount(groups)
        if len(weights) not in (0, len(sizes)):
            raise ValueError(
                f"weights has {len(weights)} numbers; allowed: {len(sizes)}, one a group, or none"
            )
        if sizes.min() < group_rows:
            raise ValueError(
                f"group_rows is {group_rows}; allowed: at most {sizes.min()}, the examples of the smallest "
                f"of the {len(sizes)} groups (number {sizes.argmin()})"
            )
        self._order = MixtureOrder(sizes, seed, weights=list(weights) or None, domain_rows=group_rows)

    def rows(self, step: int, batch_size: int) -> np.ndarray:
        """Returns the examples of one step, over all processes, int64 [batch_size]."""
        return self._examples[self._order.rows(step, batch_size)]
