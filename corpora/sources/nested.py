"""`nested`: a part of a collection in BEIR layout, so that smaller corpora lie within larger ones.

All parts of one collection are judged by the same queries: of dev and of test so many are drawn by the hashes
of their ids, and all their relevant documents are in every part. Other documents join in the order of their
hashes, or first those that have a query of their own. So the part of 1,000 documents lies within that of
4,000, and what changes is only how many others there are. Training judgements are those of the documents that
are there.
"""

import hashlib
from collections.abc import Mapping

from corpora import dataset
from corpora.sources.beir_folder import BeirFolder
from corpora.sources.hashes import drawn
from corpora.tables import DataError, Tables


class Nested(BeirFolder):
    """Builder `nested`.

    Args:
      folder: see `corpora.sources.beir_folder`.
      documents: how many; 0 for all.
      dev: queries of the split `dev` that are kept; 0 for all.
      test: likewise.
      judged_first: whether documents with a judgement come before those without one.
      seed: of the draw.
      allow_missing: see `corpora.sources.beir_folder`.
    """

    def __init__(
        self,
        *,
        documents: int = 0,
        dev: int = 0,
        test: int = 0,
        judged_first: bool = False,
        seed: int = 0,
        **kwargs,
    ):
        self._documents, self._queries = documents, {"dev": dev, "test": test}
        self._judged_first, self._seed = judged_first, seed
        super().__init__(**kwargs)

    def fingerprint(self) -> str:
        options = f"nested {self._documents} {self._queries} {self._judged_first} {self._seed}"
        return hashlib.sha256(f"{options} {super().fingerprint()}".encode()).hexdigest()

    def tables(self) -> Tables:
        return part(
            super().tables(),
            self._documents,
            self._queries,
            judged_first=self._judged_first,
            seed=self._seed,
        )


def load(
    *,
    folder: str,
    documents: int = 0,
    dev: int = 0,
    test: int = 0,
    judged_first: bool = False,
    seed: int = 0,
    allow_missing: bool = False,
) -> dataset.Dataset:
    """Returns the prepared part; the arguments are those of `Nested`."""
    return dataset.load(
        Nested,
        folder=folder,
        documents=documents,
        dev=dev,
        test=test,
        judged_first=judged_first,
        seed=seed,
        allow_missing=allow_missing,
    )


def part(
    tables: Tables,
    documents: int,
    queries: Mapping[str, int],
    *,
    judged_first: bool = False,
    seed: int = 0,
) -> Tables:
    """Returns a part of a collection, in its order; see the module's docstring.

    Args:
      tables: the whole.
      documents: how many; 0 for all.
      queries: by split how many of its queries are kept; 0 for all. Of other splits those are kept that have
      a judged document in the part.
      judged_first: whether documents with a judgement in any split come before those without one.
      seed: of the draw.

    Raises:
      DataError: there are not so many queries or documents, or too few documents for those queries.
    """
    relevant, kept_queries = set(), {}
    for split, count in queries.items():
        rows = tables.qrels.get(split, [])
        ids = drawn((row.query_id for row in rows), seed)
        if not 0 <= count <= len(ids):
            raise DataError(f"data.{split} is {count}; allowed: 1 to {len(ids)} queries, or 0 for all")
        kept_queries[split] = set(ids[: count or None])
        relevant |= {row.doc_id for row in rows if row.query_id in kept_queries[split]}
    total = len(tables.documents)
    if documents and not len(relevant) <= documents <= total:
        raise DataError(
            f"data.documents is {documents}; allowed: {len(relevant)}, those judged for the queries that are "
            f"kept, to {total}, or 0 for all"
        )
    others = drawn((row.doc_id for row in tables.documents if row.doc_id not in relevant), seed)
    if judged_first:
        judged = {row.doc_id for rows in tables.qrels.values() for row in rows}
        others.sort(key=lambda doc_id: doc_id not in judged)  # stable
    kept = relevant | set(others[: (documents or total) - len(relevant)])
    qrels = {
        split: [
            row
            for row in rows
            if row.doc_id in kept and (split not in kept_queries or row.query_id in kept_queries[split])
        ]
        for split, rows in tables.qrels.items()
    }
    used = {row.query_id for rows in qrels.values() for row in rows}
    return Tables(
        documents=[document for document in tables.documents if document.doc_id in kept],
        queries=[query for query in tables.queries if query.query_id in used],
        qrels=qrels,
        counts={**tables.counts, "documents_left_out": total - len(kept)},
    )
