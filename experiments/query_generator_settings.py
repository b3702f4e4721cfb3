"""The field `evaluation` of a query generator's config, checked where it enters."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from eval import measures
from generative_retrieval.query_sampling import Sampling
from index import lexical
from training.build import build, check_arguments, fill


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Attributes:
    train_split, dev_split, test_split: names of splits of the collection.
    batch_size: rows that are scored, and documents that queries are drawn for, at a time.
    sampling: how queries are drawn for the documents of test, one each; see
      generative_retrieval.query_sampling.Sampling.
    bm25: arguments of lexical.BM25.build, which is to find a query's document.
    measures: of that, see eval.measures.
    """

    train_split: str
    dev_split: str
    test_split: str
    batch_size: int
    sampling: Sampling
    bm25: Mapping[str, Any]
    measures: Sequence[str]

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        check_arguments(lexical.BM25.build, dict(self.bm25), "bm25")
        if not self.measures:
            raise ValueError("measures is empty; at least one is needed")
        for name in self.measures:
            if not measures.depth(name):
                raise ValueError(f"measures has {name!r}; allowed: those cut at a rank, such as hits@10")


def evaluation(spec: Mapping[str, Any], where: str) -> Evaluation:
    """Returns the settings that a config's `evaluation` describes. Raises SpecError naming the field."""
    fields = build(spec, where)
    if isinstance(fields, Mapping) and "sampling" in fields:
        fields = {**fields, "sampling": fill(Sampling, fields["sampling"], f"{where}.sampling")}
    return fill(Evaluation, fields, where)
