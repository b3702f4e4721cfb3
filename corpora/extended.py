"""A collection that documents were added to: those that were there come first, and so keep their rows."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpora import beir
from corpora.dataset import Dataset
from corpora.sources import beir_folder
from corpora.tables import DataError, Document, Tables


class Joined(Sequence):
    """Documents one sequence after the other, with the method `read` of `corpora.dataset.Rows`."""

    def __init__(self, first: Sequence[Document], second: Sequence[Document]):
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.read(range(len(self))[index])
        return self.read([range(len(self))[index]])[0]

    def __iter__(self) -> Iterator[Document]:
        return itertools.chain(self._first, self._second)

    def read(self, rows: Sequence[int]) -> list[Document]:
        """Reads the given rows, in the given order."""
        count = len(self._first)
        earlier = iter(self._first.read([row for row in rows if row < count]))
        return [next(earlier) if row < count else self._second[int(row) - count] for row in rows]


def load(*, of: Dataset, documents: str) -> Dataset:
    """Returns a collection and more documents behind it.

    Args:
      of: the collection.
      documents: a file corpus.jsonl, or .jsonl.gz, as in BEIR layout; or a folder in BEIR layout, or its name
        under RETRIEVAX_DATA, whose queries and judgements are added too.

    Raises:
      DataError: it is missing or malformed, a document is there already, or a query with another text.
    """
    path = Path(documents).expanduser()
    if path.is_file():
        more = Tables(list(beir.documents(path).values()), [], {})
    else:
        path = beir_folder.find(documents)
        more = beir.read(path, allow_missing=True)
    known = set(of.doc_ids)
    twice = [document.doc_id for document in more.documents if document.doc_id in known]
    if twice:
        raise DataError(f"{path}: {len(twice)} of its documents are there already: {', '.join(twice[:5])}")
    queries, qrels = dict(of.queries), {split: dict(judged) for split, judged in of.qrels.items()}
    for query_id, text in more.queries:
        if queries.setdefault(query_id, text) != text:
            raise DataError(f"{path}: query {query_id!r} has another text than in {of.name}")
    for split, judgements in more.qrels.items():
        for query_id, doc_id, relevance in judgements:
            judged = qrels.setdefault(split, {})
            judged[query_id] = {**judged.get(query_id, {}), doc_id: relevance}
    digest = hashlib.sha256(of.corpus_hash.encode())
    for document in more.documents:
        digest.update("\0".join(document).encode() + b"\1")
    return dataclasses.replace(
        of,
        folder=path,  # where nothing is prepared: whoever opens it anew does so by its config
        corpus_hash=digest.hexdigest(),
        documents=Joined(of.documents, more.documents),
        doc_ids=[*of.doc_ids, *(document.doc_id for document in more.documents)],
        queries=queries,
        qrels=qrels,
        counts={**of.counts, "added_documents": len(more.documents)},
    )
