"""The three tables of a retrieval collection, as in BEIR and ir_datasets.

A source (see `corpora.sources`) makes these; `corpora.dataset` serves them to programs.
"""

import dataclasses
from typing import NamedTuple


class Document(NamedTuple):
    doc_id: str
    title: str
    text: str


class Query(NamedTuple):
    query_id: str
    text: str


class Judgement(NamedTuple):
    query_id: str
    doc_id: str
    relevance: int


@dataclasses.dataclass(frozen=True)
class Tables:
    """What a source reads: every document, every query, and the judgements of each split.

    `counts` is what the source wants recorded about its reading (files, duplicates dropped, ...).
    """

    documents: list[Document]
    queries: list[Query]
    qrels: dict[str, list[Judgement]]
    counts: dict[str, int] = dataclasses.field(default_factory=dict)


class DataError(ValueError):
    """The input data is wrong; the message names file, line and field."""
