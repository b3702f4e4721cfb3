"""The fields `batch` and `evaluation` of a cross-encoder's config, checked where they enter."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from dual_encoder.negative_filters import Mined
from experiments import settings
from index import lexical
from training.build import check_arguments


@dataclasses.dataclass(frozen=True)
class Batch:
    """Attributes:
    batch_size: queries of a step, over all processes and devices.
    negatives_per_query: listed negatives of each query, drawn anew at each step.
    negatives: who mines them, such as dual_encoder.negatives.bm25.
    """

    batch_size: int
    negatives_per_query: int
    negatives: Callable[..., Mined]

    def __post_init__(self):
        for field in ("batch_size", "negatives_per_query"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
        if not callable(self.negatives):
            raise ValueError(f"negatives is {self.negatives!r}; allowed: such as dual_encoder.negatives.bm25")
        count = getattr(self.negatives, "keywords", {}).get("count", self.negatives_per_query)
        if count < self.negatives_per_query:
            raise ValueError(
                f"negatives.count is {count}; it must be at least negatives_per_query, "
                f"{self.negatives_per_query}"
            )


@dataclasses.dataclass(frozen=True)
class Evaluation(settings.Evaluation):
    """Attributes, besides those of `settings.Evaluation`:
    depth: documents of BM25's ranking, tuned on dev, that are scored anew for each query; those below keep
      their order.
    dev_depth: likewise in training, on dev.
    dev_bm25: the BM25 whose ranking that is, see index.lexical.BM25.build; titles count too.
    """

    depth: int = 100
    dev_depth: int = 20
    dev_bm25: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        settings.refuse_widths(self, "a cross-encoder has no vectors")
        for field in ("depth", "dev_depth"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
        check_arguments(lexical.BM25.build, dict(self.dev_bm25), "dev_bm25")
