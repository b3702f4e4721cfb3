"""The fields `batch` and `evaluation` of a language model's config, checked where they enter."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Batch:
    """Attributes:
    batch_size: rows of a step, over all processes and devices; each is a chunk of a document.
    length: tokens that documents are cut to.
    domain_rows: how many rows of one domain stand together, see corpora.mixture_order; it divides
      batch_size.
    """

    batch_size: int
    length: int
    domain_rows: int = 1

    def __post_init__(self):
        for field, least in (("batch_size", 1), ("length", 2), ("domain_rows", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least {least}")
        if self.batch_size % self.domain_rows:
            raise ValueError(
                f"domain_rows is {self.domain_rows}; allowed: a divisor of batch_size, {self.batch_size}"
            )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Attributes:
    batch_size: rows that are scored at a time, on dev and on test.
    """

    batch_size: int

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
