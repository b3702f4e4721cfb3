"""`joined`: several collections in BEIR layout as one, to train on all of them together.

The ids of a collection's documents and queries are prefixed by its folder's name and a slash, as in
`medquad/17`, so that they tell which it is from (dual_encoder.topics.collections groups batches by them). The
splits of one name are joined. A query may find the documents of all collections, where only those of its own
are judged.
"""

import hashlib
from collections.abc import Sequence

from corpora import beir, dataset
from corpora.sources.beir_folder import find
from corpora.sources.builder import TablesBuilder
from corpora.tables import DataError, Document, Judgement, Query, Tables


class Joined(TablesBuilder):
    """Builder `joined`.

    Args:
      folders: paths, or names under RETRIEVAX_DATA; two or more, whose last parts differ.
      allow_missing: see `corpora.sources.beir_folder`.
    """

    def __init__(self, *, folders: Sequence[str] = (), allow_missing: bool = False, **kwargs):
        self._folders = {(path := find(folder)).name: path for folder in folders}
        if len(folders) < 2 or len(self._folders) < len(folders):
            raise DataError(
                f"data.folders is {tuple(folders)}; allowed: two or more, whose names differ, as ids begin "
                "with them"
            )
        self._allow_missing = allow_missing
        super().__init__(**kwargs)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.VERSION} {self._allow_missing}".encode())
        for name, folder in self._folders.items():
            for file in beir.files(folder):
                digest.update(f"{name}/{file.name}".encode())
                with file.open("rb") as handle:
                    digest.update(hashlib.file_digest(handle, "sha256").digest())
        return digest.hexdigest()

    def tables(self) -> Tables:
        return joined(
            {
                name: beir.read(folder, allow_missing=self._allow_missing)
                for name, folder in self._folders.items()
            }
        )


def load(*, folders: Sequence[str], allow_missing: bool = False) -> dataset.Dataset:
    """Returns the prepared collection; the arguments are those of `Joined`."""
    return dataset.load(Joined, folders=folders, allow_missing=allow_missing)


def joined(collections: dict[str, Tables]) -> Tables:
    """Returns collections by name as one, in their order; see the module's docstring."""
    documents, queries, qrels, counts = [], [], {}, {}
    for name, tables in collections.items():
        documents += [Document(f"{name}/{d.doc_id}", d.title, d.text) for d in tables.documents]
        queries += [Query(f"{name}/{q.query_id}", q.text) for q in tables.queries]
        for split, rows in tables.qrels.items():
            qrels.setdefault(split, []).extend(
                Judgement(f"{name}/{row.query_id}", f"{name}/{row.doc_id}", row.relevance) for row in rows
            )
        for key, value in tables.counts.items():
            counts[key] = counts.get(key, 0) + value
    return Tables(documents, queries, qrels, counts)
