"""A collection as programs use it: prepared once by its TFDS builder, then read at random.

The prepared folder is named by the source's fingerprint (a hash of the files read and of the
options), so an edited file is never served from a stale cache.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from corpora.sources.builder import FEATURES, TablesBuilder
from corpora.tables import DataError, Document, Judgement, Query

_ROW = {"documents": Document, "queries": Query, "qrels": Judgement}
_READ_AT_ONCE = 10_000  # rows
_META = "meta.json"
_OFFLINE = tfds.download.DownloadConfig(try_download_gcs=False)


class Rows(Sequence):
    """A table on disk as a sequence of named tuples; only what is asked for is read."""

    def __init__(self, source: Sequence[dict[str, Any]], row_type: type[NamedTuple]):
        self._source, self._row_type = source, row_type

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.read(range(len(self))[index])
        return self.read([range(len(self))[index]])[0]

    def __iter__(self) -> Iterator:
        for start in range(0, len(self), _READ_AT_ONCE):
            yield from self[start : start + _READ_AT_ONCE]

    def read(self, rows: Sequence[int]) -> list:
        """Reads the given rows, in the given order."""
        records = self._source.__getitems__([int(row) for row in rows]) if len(rows) else []
        return [
            self._row_type(**{k: v.decode() if isinstance(v, bytes) else int(v) for k, v in record.items()})
            for record in records
        ]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Documents, queries and judgements of one collection.

    Attributes:
      name: the builder's name.
      folder: where it is prepared; its name is a hash of sources and options.
      corpus_hash: hash of the documents themselves (ids, titles, texts).
      documents: all documents; the row number is what an index returns.
      doc_ids: their ids, in row order.
      queries: text by query id, all splits together.
      qrels: by split, the judgements `{query_id: {doc_id: relevance}}`.
      counts: what the source counted while reading.
    """

    name: str
    folder: Path
    corpus_hash: str
    documents: Rows
    doc_ids: list[str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, dict[str, int]]]
    counts: dict[str, int]

    def split(self, name: str) -> dict[str, dict[str, int]]:
        """Returns the judgements of one split. Raises DataError naming the splits there are."""
        if name not in self.qrels:
            raise DataError(f"{self.name} has no split {name!r}; it has {', '.join(sorted(self.qrels))}")
        return self.qrels[name]

    def titles_and_texts(self) -> tuple[list[str], list[str]]:
        """Returns all documents' titles and texts, in row order."""
        pairs = [(document.title, document.text) for document in self.documents]
        return [title for title, _ in pairs], [text for _, text in pairs]

    def summary(self) -> str:
        """Returns one line: sizes, splits and the corpus hash."""
        splits = ", ".join(f"{name} {len(qrels):,}" for name, qrels in self.qrels.items())
        counts = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in self.counts.items())
        return (
            f"{self.name}: {len(self.doc_ids):,} documents; queries: {splits}"
            f"{f'; {counts}' if counts else ''}; corpus {self.corpus_hash[:12]}"
        )


def cache_folder() -> Path:
    """Where prepared collections are kept: RETRIEVAX_CACHE, or ~/.cache/retrievax."""
    return Path(os.environ.get("RETRIEVAX_CACHE") or Path.home() / ".cache" / "retrievax")


def load(builder_class: type[TablesBuilder], **options) -> Dataset:
    """Prepares a source's tables where they are not prepared yet, and opens them.

    Args:
      builder_class: a builder under corpora.sources.
      **options: its options, such as `root` or `folder`.

    Raises:
      DataError: the source is missing or malformed; the message names file, line and field.
    """
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    cache = cache_folder() / "data"
    fingerprint = builder_class(config="documents", data_dir=cache, **options).fingerprint()
    folder = cache / fingerprint[:16]
    if not (folder / _META).exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Prepared beside and then renamed: what is there is whole, and two processes do not meet.
        with tempfile.TemporaryDirectory(prefix=".preparing-", dir=cache) as made:
            builders = {table: builder_class(config=table, data_dir=made, **options) for table in FEATURES}
            _prepare(builders, Path(made), fingerprint)
            with contextlib.suppress(OSError):  # another process was faster
                Path(made).rename(folder)
    return open_prepared(folder)


def open_prepared(folder: Path) -> Dataset:
    """Opens a prepared folder without looking at the source it was made from.

    Raises:
      DataError: there is no prepared collection in `folder`.
    """
    folder = Path(folder)
    if not (folder / _META).exists():
        raise DataError(f"no prepared collection in {folder}")
    meta = json.loads((folder / _META).read_text())

    def rows(table: str, split: str) -> Rows:
        builder = tfds.builder_from_directory(folder / meta["name"] / table / meta["version"])
        return Rows(builder.as_data_source(split=split), _ROW[table])

    qrels = {}
    for split in meta["splits"]:
        qrels[split] = {}
        for query_id, doc_id, relevance in rows("qrels", split):
            qrels[split].setdefault(query_id, {})[doc_id] = relevance
    documents = rows("documents", "documents")
    return Dataset(
        name=meta["name"],
        folder=folder,
        corpus_hash=meta["corpus_hash"],
        documents=documents,
        doc_ids=[document.doc_id for document in documents],
        queries={query.query_id: query.text for query in rows("queries", "queries")},
        qrels=qrels,
        counts=meta["counts"],
    )


def _prepare(builders: dict[str, TablesBuilder], folder: Path, fingerprint: str) -> None:
    name = builders["documents"].name
    print(f"preparing {name} in {folder.parent}", file=sys.stderr, flush=True)
    tables = builders["documents"].tables()
    if not tables.documents:
        raise DataError(f"{name}: the corpus is empty")
    digest = hashlib.sha256()
    for document in tables.documents:
        digest.update("\0".join(document).encode() + b"\1")
    tfds.disable_progress_bar()
    for builder in builders.values():
        builder.tables = lambda: tables  # read once for the three configs
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download; there is none
            builder.download_and_prepare(download_config=_OFFLINE)
    meta = {
        "name": name,
        "version": str(builders["documents"].version),
        "fingerprint": fingerprint,
        "corpus_hash": digest.hexdigest(),
        "splits": [split for split, rows in tables.qrels.items() if rows],
        "counts": tables.counts,
    }
    (folder / _META).write_text(json.dumps(meta, indent=1))
