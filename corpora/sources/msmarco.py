"""`msmarco`: a folder with the files of MS MARCO (Bajaj et al., 2016), passages or documents.

    collection.tsv                  pid, text                      or
    msmarco-docs.tsv                docid, url, title, body        (the url is passed over)
    queries.<split>.tsv             qid, text
    qrels.<split>.tsv               qid, 0, pid, relevance

in UTF-8, columns with tabs between; in qrels spaces will do. The names of the document task,
`msmarco-doc<split>-queries.tsv` and `msmarco-doc<split>-qrels.tsv`, are known too, and every file may be
compressed (`.gz`). A split is there if its qrels are; its queries may stand in any of the query files.
A dot in its name becomes `_`: `dev_small`. All is held in memory.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from corpora import beir, dataset, text_lines
from corpora.sources.builder import TablesBuilder
from corpora.sources.hashes import file_digest, split_off
from corpora.tables import DataError, Query, Tables

COLLECTIONS = {"collection.tsv": ("pid", "text"), "msmarco-docs.tsv": ("docid", "url", "title", "body")}
_SPLIT_FILE = r"(?:{what}\.(?P<a>.+)|msmarco-doc(?P<b>.+)-{what})\.tsv(?:\.gz)?"


class Msmarco(TablesBuilder):
    """Builder `msmarco`.

    Args:
      folder: where the files are.
      held_out: fraction of the training queries that are split `held_out` instead, to choose by, so that the
        public dev queries can be the test.
      allow_missing: whether judgements that name an unknown query or document are skipped and
        counted, rather than refused.
    """

    def __init__(self, *, folder: str = "", held_out: float = 0.0, allow_missing: bool = False, **kwargs):
        self._folder = Path(folder).expanduser()
        self._held_out, self._allow_missing = held_out, allow_missing
        if not folder or not self._folder.is_dir():
            raise DataError(f"data.folder: no such folder: {folder!r}; expected the files of MS MARCO")
        super().__init__(**kwargs)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.VERSION} {self._held_out} {self._allow_missing}".encode())
        corpus, queries, qrels = self._layout()
        for file in (corpus, *queries.values(), *qrels.values()):
            digest.update(file.name.encode() + b"\0" + file_digest(file))
        return digest.hexdigest()

    def tables(self) -> Tables:
        corpus, query_files, qrel_files = self._layout()
        columns = COLLECTIONS[corpus.name.removesuffix(".gz")]
        documents = beir.check_documents(
            corpus,
            (
                (number, {"_id": row[0], "title": row[2] if len(row) > 2 else "", "text": row[-1]})
                for number, row in _rows(corpus, columns)
            ),
        )
        queries = self._queries(query_files)
        counts = {"duplicate_judgements": 0, "skipped_judgements": 0}
        qrels = {}
        for split, path in qrel_files.items():
            rows = ((number, [row[0], row[2], row[3]]) for number, row in _qrel_rows(path))
            qrels[split] = beir.check_judgements(path, rows, queries, documents, self._allow_missing, counts)
        if self._held_out:
            if "train" not in qrels:
                raise DataError(f"data.held_out is {self._held_out}, but there is no qrels.train.tsv")
            if "held_out" in qrels:
                raise DataError(
                    f"data.held_out is {self._held_out}, but there is a qrels.held_out.tsv already"
                )
            train = qrels.pop("train")
            split = split_off((row.query_id for row in train), {"held_out": self._held_out})
            for name in ("train", "held_out"):
                qrels[name] = [row for row in train if split[row.query_id] == name]
        return Tables(list(documents.values()), list(queries.values()), qrels, counts)

    def _layout(self) -> tuple[Path, dict[str, Path], dict[str, Path]]:
        """Finds the collection, and by split the files of queries and of judgements."""
        names = [name + end for name in COLLECTIONS for end in ("", ".gz")]
        found = [self._folder / name for name in names if (self._folder / name).is_file()]
        if len(found) != 1:
            there = f"there are {' and '.join(p.name for p in found)}" if found else "no collection"
            raise DataError(f"{self._folder}: {there}; expected one of {', '.join(names)}")
        queries, qrels = self._by_split("queries"), self._by_split("qrels")
        for what, files in (("queries", queries), ("qrels", qrels)):
            if not files:
                raise DataError(f"{self._folder}: no file: looked for {what}.<split>.tsv")
        return found[0], queries, qrels

    def _by_split(self, what: str) -> dict[str, Path]:
        files = {}
        for path in sorted(self._folder.iterdir()):
            match = re.fullmatch(_SPLIT_FILE.format(what=what), path.name)
            if match and path.is_file():
                split = re.sub(r"\W", "_", match["a"] or match["b"])
                if split in files:
                    raise DataError(
                        f"{self._folder}: split {split!r} is both {files[split].name} and {path.name}"
                    )
                files[split] = path
        return files

    def _queries(self, files: dict[str, Path]) -> dict[str, Query]:
        queries, origin = {}, {}
        for path in files.values():
            rows = ((number, {"_id": row[0], "text": row[1]}) for number, row in _rows(path, ("qid", "text")))
            for query in beir.check_queries(path, rows).values():
                earlier = queries.setdefault(query.query_id, query)
                if earlier != query:
                    said = f"{query.text[:60]!r}, but {earlier.text[:60]!r} in {origin[query.query_id]}"
                    raise DataError(f"{path}: query {query.query_id!r} is {said}")
                origin.setdefault(query.query_id, path)
        return queries


def load(*, folder: str, held_out: float = 0.0, allow_missing: bool = False) -> dataset.Dataset:
    """Returns the prepared collection; the arguments are those of `Msmarco`."""
    return dataset.load(Msmarco, folder=folder, held_out=held_out, allow_missing=allow_missing)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    for number, line in text_lines.read(path):
        row = line.split("\t")
        if len(row) != len(columns):
            wanted = f"{len(columns)} columns ({', '.join(columns)}), tab-separated"
            raise DataError(f"{path}:{number}: a line must have {wanted}, not {len(row)}: {line[:80]!r}")
        yield number, row


def _qrel_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in text_lines.read(path):
        row = line.split()
        if len(row) != 4:
            wanted = "4 columns (qid, 0, pid, relevance)"
            raise DataError(f"{path}:{number}: a line must have {wanted}, not {len(row)}: {line[:80]!r}")
        yield number, row
