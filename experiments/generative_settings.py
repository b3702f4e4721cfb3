"""The fields `text`, `docids`, `indexing`, `evaluation` and `plan` of a generative retriever's config,
checked where they enter."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from eval import measures
from experiments import settings
from generative_retrieval import beam
from generative_retrieval.docids import Scheme
from generative_retrieval.indexing import Examples, Source


@dataclasses.dataclass(frozen=True)
class Text:
    """Attributes:
    length: tokens that documents and queries are cut to, in training and in search.
    """

    length: int

    def __post_init__(self):
        _check_least(self, "length", 1)


@dataclasses.dataclass(frozen=True)
class Docids:
    """Attributes:
    scheme: who gives ids, such as generative_retrieval.schemes.semantic.Semantic.
    vectors: what embeds documents for it, such as generative_retrieval.vectors.latent; None unless the scheme
      needs vectors.
    extends: a run whose ids are kept; the collection begins with its documents, and those behind them
      are added, with ids in the same scheme. "" to give all of them ids.
    removed: a file of doc ids, one a line, which no search finds; it is read when a run is opened, so that
      it may grow. "" for none.
    """

    scheme: Scheme
    vectors: Callable[..., np.ndarray] | None = None
    extends: str = ""
    removed: str = ""

    def __post_init__(self):
        if not callable(getattr(self.scheme, "assign", None)):
            raise ValueError(
                f"scheme is {self.scheme!r:.60}; allowed: a scheme, see generative_retrieval.schemes"
            )
        if self.scheme.needs_vectors and self.vectors is None:
            raise ValueError(
                f"vectors is None; the scheme {type(self.scheme).__name__} needs them, such as "
                "generative_retrieval.vectors.latent"
            )


@dataclasses.dataclass(frozen=True)
class Indexing:
    """Attributes:
    sources: what is mapped to docids, by names of your own, see generative_retrieval.indexing.
    weights: the share of each in the rows of a batch, in any unit; {} for its share of all examples.
    replay: where docids are extended, the share of rows that are of earlier documents, 0 to below 1; each
      source is weighed likewise among the earlier and the added ones.
    """

    sources: Mapping[str, Callable[[Source], Examples]]
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    replay: float = 0.0

    def __post_init__(self):
        if not self.sources:
            raise ValueError("sources is empty; at least one is needed")
        for name, source in self.sources.items():
            if not callable(source):
                raise ValueError(
                    f"sources.{name} is {source!r:.60}; allowed: one of generative_retrieval.indexing"
                )
        if self.weights and set(self.weights) != set(self.sources):
            raise ValueError(
                f"weights are of {', '.join(sorted(self.weights))}; allowed: of all sources, "
                f"{', '.join(sorted(self.sources))}, or of none"
            )
        for name, weight in self.weights.items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"weights.{name} is {weight}; it must be positive")
        if not 0 <= self.replay < 1:
            raise ValueError(f"replay is {self.replay}; allowed: 0 to below 1")


@dataclasses.dataclass(frozen=True)
class Evaluation(settings.Evaluation):
    """With the attributes of `settings.Evaluation`, of which `fusion_weights` are the generative retriever's.

    Attributes:
      beams: ids that are spelled at a time, of each query.
      results: documents that a query finds.
      length_penalty: see generative_retrieval.beam.search.
      search: how, such as generative_retrieval.diverse.search with its groups and penalty.
      batch_size: queries that are searched at a time.
      dev_queries: of the dev split, the first so many are searched during training; 0 for all. Where
        documents were added, so many of the queries for them, and of the others.
    """

    beams: int = 10
    results: int = 10
    length_penalty: float = 0.0
    search: Callable[..., beam.Found] = beam.search
    batch_size: int = 64
    dev_queries: int = 0

    def __post_init__(self):
        super().__post_init__()
        settings.refuse_widths(self, "docids are not cut")
        for field, least in (("beams", 1), ("results", 1), ("batch_size", 1), ("dev_queries", 0)):
            _check_least(self, field, least)
        if not 0 <= self.length_penalty < float("inf"):
            raise ValueError(f"length_penalty is {self.length_penalty}; allowed: 0 or more")
        if not callable(self.search):
            raise ValueError(
                f"search is {self.search!r}; allowed: a function such as generative_retrieval.beam.search"
            )
        for field in ("measures", "dev_measures", "tune_measure"):
            named = getattr(self, field)
            for name in [named] if isinstance(named, str) else named:
                depth = measures.depth(name)
                if not depth:
                    raise ValueError(f"{field} has {name!r}; allowed: those cut at a rank, such as hits@10")
                if depth > self.results:
                    raise ValueError(f"results is {self.results}; {name} of {field} needs {depth} or more")
        if (wanted := self.results + self.drop_same_id) > self.beams:
            raise ValueError(
                f"beams is {self.beams}; allowed: {wanted} or more, for so many results"
                + (" and the query's own document" if self.drop_same_id else "")
            )
        if self.run_depth > self.results:
            raise ValueError(
                f"run_depth is {self.run_depth}; allowed: 1 to {self.results}, the documents that a query "
                "finds (results)"
            )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What only data would say, for programs that read none: experiments.cost and experiments.plan.

    Attributes:
      docid_length: symbols of the longest docid.
    """

    docid_length: int

    def __post_init__(self):
        _check_least(self, "docid_length", 1)


def _check_least(of: Any, field: str, least: int) -> None:
    if getattr(of, field) < least:
        raise ValueError(f"{field} is {getattr(of, field)}; it must be at least {least}")
