"""How a family's runs are opened to search with: its Experiment has a `searching`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dual_encoder.retriever import Hit


class Searcher(Protocol):
    """A run that is opened."""

    def search(self, query: str, k: int, system: str) -> list[Hit]:
        """Returns the k best documents of a query, best first."""
        ...


@dataclasses.dataclass(frozen=True)
class Searching:
    """Attributes:
    systems: what can rank the documents, the first by default.
    load: `(run_dir, config, *, k, allow_batch_dependence, **options) -> Searcher`; k is the most results
      that a query is asked for.
    options: names of more arguments that `load` takes.
    """

    systems: Sequence[str]
    load: Callable[..., Any]
    options: Sequence[str] = ()
