"""Read and write a retrieval collection in BEIR layout (Thakur et al., 2021, "BEIR").

A folder holds

    corpus.jsonl or corpus.jsonl.gz      {"_id": ..., "title": ..., "text": ...} a line
    queries.jsonl or queries.jsonl.gz    {"_id": ..., "text": ...} a line
    qrels/<split>.tsv                    header `query-id corpus-id score`, tab-separated

in UTF-8, a byte-order mark allowed. Lines end at a line feed (or CR LF) and nowhere else: texts may
hold U+2028 and its like, ids may hold spaces and quotes, which mean nothing special. Other fields,
such as `metadata`, are passed over.
"""

import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from corpora import text_lines
from corpora.tables import DataError, Document, Judgement, Query, Tables

HEADER = ("query-id", "corpus-id", "score")
GZIP_ABOVE = 3_000_000  # bytes of corpus.jsonl
_MAX_SCORE = 2**31 - 1  # judgements are stored as int32
_SHOWN = 5


def read(folder: str | Path, *, splits: Iterable[str] | None = None, allow_missing: bool = False) -> Tables:
    """Reads and checks a whole collection.

    Args:
      folder: a folder in BEIR layout.
      splits: the splits to read, None for all there are.
      allow_missing: whether to skip judgements that name an unknown query or document, rather than
        to raise.

    Returns:
      The tables, documents and queries in the order of their files. Their `counts` are
      `empty_documents` (kept), `duplicate_judgements` (rows said twice, kept once) and
      `skipped_judgements` (rows with an unknown id; 0 unless `allow_missing`).

    Raises:
      DataError: on bad input, naming file, line (from 1) and field.
    """
    corpus, queries, qrels = _layout(Path(folder), splits)
    documents = check_documents(corpus, _objects(corpus))
    asked = check_queries(queries, _objects(queries))
    counts = {"empty_documents": 0, "duplicate_judgements": 0, "skipped_judgements": 0}
    counts["empty_documents"] = sum(not d.title.strip() and not d.text.strip() for d in documents.values())
    judged = {}
    for split, path in qrels.items():
        rows = _rows(path, asked, documents)
        judged[split] = check_judgements(path, rows, asked, documents, allow_missing, counts)
    return Tables(list(documents.values()), list(asked.values()), judged, counts)


def documents(corpus: str | Path) -> dict[str, Document]:
    """Reads and checks a corpus.jsonl, or .jsonl.gz, alone: its documents by id.

    Raises:
      DataError: on bad input, naming file, line (from 1) and field.
    """
    return check_documents(Path(corpus), _objects(Path(corpus)))


def files(folder: str | Path, *, splits: Iterable[str] | None = None) -> list[Path]:
    """Returns the files that `read` would read. Raises DataError where one is missing or unclear."""
    corpus, queries, qrels = _layout(Path(folder), splits)
    return [corpus, queries, *qrels.values()]


def write(folder: str | Path, tables: Tables) -> None:
    """Writes `tables` in BEIR layout, the corpus compressed if it is above `GZIP_ABOVE` bytes.

    Equal tables give equal bytes. Each file appears whole or not at all. Files of the layout that
    are left from an earlier collection are removed; other files stay.

    Raises:
      DataError: if `read` would refuse the result; nothing is written then.
    """
    folder = Path(folder)
    corpus, queries = folder / "corpus.jsonl", folder / "queries.jsonl"
    document_rows = [{"_id": d.doc_id, "title": d.title, "text": d.text} for d in tables.documents]
    query_rows = [{"_id": q.query_id, "text": q.text} for q in tables.queries]
    documents = check_documents(corpus, enumerate(document_rows, 1))
    asked = check_queries(queries, enumerate(query_rows, 1))
    if not tables.qrels:
        raise DataError(f"{folder / 'qrels'}: no split to write")
    outputs = {}
    for split, judgements in tables.qrels.items():
        path = folder / "qrels" / f"{split}.tsv"
        if not split or split.startswith(".") or re.search(r"[/\\\0]", split):
            raise DataError(f"{path}: split {split!r} cannot name a file")
        rows = [[query_id, doc_id, str(relevance)] for query_id, doc_id, relevance in judgements]
        check_judgements(path, enumerate(rows, 2), asked, documents, False, {"duplicate_judgements": 0})
        outputs[path] = "".join("\t".join(row) + "\n" for row in [HEADER, *rows]).encode()
    outputs[queries] = _jsonl(query_rows)
    data = _jsonl(document_rows)
    if len(data) > GZIP_ABOVE:
        # mtime=0: otherwise the bytes would hold the time of writing.
        corpus, data = folder / "corpus.jsonl.gz", gzip.compress(data, 9, mtime=0)
    outputs[corpus] = data

    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for path, content in outputs.items():
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_bytes(content)
        partial.replace(path)
    stale = [folder / f"{name}.jsonl{end}" for name in ("corpus", "queries") for end in ("", ".gz")]
    for path in {*stale, *folder.glob("qrels/*.tsv")} - outputs.keys():
        path.unlink(missing_ok=True)


def _jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _layout(folder: Path, splits: Iterable[str] | None) -> tuple[Path, Path, dict[str, Path]]:
    """Finds the corpus, the queries, and by name the wanted splits in sorted order."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; looked for a collection in BEIR layout")

    def one(name: str) -> Path:
        found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if len(found) != 1:
            what = "there are both" if found else "no file: looked for"
            raise DataError(f"{folder}: {what} {name} {'and' if found else 'or'} {name}.gz")
        return found[0]

    corpus, queries = one("corpus.jsonl"), one("queries.jsonl")
    qrels = {path.stem: path for path in sorted(folder.glob("qrels/*.tsv")) if not path.name.startswith(".")}
    if not qrels:
        raise DataError(f"{folder}: no file: looked for qrels/<split>.tsv")
    if splits is not None:
        splits = list(splits)
        for split in splits:
            if split not in qrels:
                raise DataError(f"{folder}: no split {split!r} in qrels/; there are {', '.join(qrels)}")
        qrels = {split: path for split, path in qrels.items() if split in splits}
    return corpus, queries, qrels


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in text_lines.read(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            reason = f"{error.msg} at column {error.colno}"
            raise DataError(f"{path}:{number}: malformed JSON: {reason}") from None
        except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
            raise DataError(f"{path}:{number}: malformed JSON: {error}") from None
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise DataError(f"{path}:{number}: the line must be a JSON object, not {kind}: {line[:60]!r}")
        yield number, row


def check_documents(path: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> dict[str, Document]:
    """Returns by id the documents of (line number, {"_id", "title", "text"}) rows that `path` holds.

    Raises:
      DataError: an id twice, a field missing or not a string, or no document; with file and line.
    """
    documents, lines = {}, {}
    for number, row in rows:
        where = f"{path}:{number}"
        ident = _id(where, row, path, lines)
        lines[ident] = number
        title = row.get("title")
        title = "" if title is None else _string(where, "title", title)
        documents[ident] = Document(ident, title, _text(where, row))
    if not documents:
        raise DataError(f"{path}: the corpus is empty; it must hold one document a line at least")
    return documents


def check_queries(path: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> dict[str, Query]:
    """Returns by id the queries of (line number, {"_id", "text"}) rows; raises as `check_documents`."""
    queries, lines = {}, {}
    for number, row in rows:
        where = f"{path}:{number}"
        ident = _id(where, row, path, lines)
        lines[ident] = number
        queries[ident] = Query(ident, _text(where, row))
        if not queries[ident].text.strip():
            raise DataError(f"{where}: field 'text' of query {ident!r} is empty")
    if not queries:
        raise DataError(f"{path}: there are no queries; the file must hold one a line at least")
    return queries


def _id(where: str, row: dict[str, Any], path: Path, lines: dict[str, int]) -> str:
    if "_id" not in row:
        fields = ", ".join(map(repr, row)) or "none"
        raise DataError(f"{where}: field '_id' is missing; the fields are: {fields}")
    ident = _string(where, "_id", row["_id"])
    if not ident.strip():
        raise DataError(f"{where}: field '_id' is empty: {ident!r}")
    if re.search(r"[\t\r\n]", ident):
        raise DataError(f"{where}: field '_id' must hold no tab and no line end: {ident!r}")
    if ident in lines:
        raise DataError(f"{where}: field '_id': duplicate id {ident!r}, first in {path}:{lines[ident]}")
    return ident


def _text(where: str, row: dict[str, Any]) -> str:
    if "text" not in row:
        raise DataError(f"{where}: field 'text' is missing; the fields are: {', '.join(map(repr, row))}")
    return _string(where, "text", row["text"])


def _string(where: str, field: str, value: Any) -> str:
    if not isinstance(value, str):
        got = f"{type(value).__name__} {str(value)[:60]}"
        raise DataError(f"{where}: field {field!r} must be a string, not {got}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise DataError(f"{where}: field {field!r} has half a surrogate pair: {half}") from None
    return value


def _rows(
    path: Path, queries: dict[str, Query], documents: dict[str, Document]
) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, columns) without the header.

    A file without one is taken as such only if its first line is a judgement of known ids.
    """
    for number, line in text_lines.read(path):
        columns = line.split("\t")
        if number == 1:
            if tuple(column.strip() for column in columns) == HEADER:
                continue
            if len(columns) != 3 or columns[0] not in queries or columns[1] not in documents:
                header = ", ".join(HEADER)
                raise DataError(f"{path}:1: the header must be {header}, tab-separated, not {line[:80]!r}")
        yield number, columns


def check_judgements(
    path: Path,
    rows: Iterable[tuple[int, list[str]]],
    queries: dict[str, Query],
    documents: dict[str, Document],
    allow_missing: bool,
    counts: dict[str, int],
) -> list[Judgement]:
    """Returns the judgements of (line number, [query id, document id, score]) rows.

    `counts` is added to: `duplicate_judgements`, and `skipped_judgements` if `allow_missing`.

    Raises:
      DataError: a malformed row, two scores of one pair, unknown ids unless `allow_missing`, or no row left;
        with file and line.
    """
    judgements, seen, unknown = [], {}, []
    for number, columns in rows:
        where = f"{path}:{number}"
        if len(columns) != 3:
            line = "\t".join(columns)[:80]
            wanted = f"3 columns ({', '.join(HEADER)}), tab-separated"
            raise DataError(f"{where}: a row must have {wanted}, not {len(columns)}: {line!r}")
        query_id, doc_id, score = columns
        relevance = int(score) if re.fullmatch(r"\s*[+-]?[0-9]{1,10}\s*", score) else None
        if relevance is None or abs(relevance) > _MAX_SCORE:
            raise DataError(f"{where}: field 'score' must be an integer of 32 bits, not {score!r}")
        earlier = seen.setdefault((query_id, doc_id), (number, relevance))
        if earlier[1] != relevance:
            pair = f"query-id {query_id!r}, corpus-id {doc_id!r}"
            said = f"field 'score' is {relevance}, but {earlier[1]} in {path}:{earlier[0]}"
            raise DataError(f"{where}: {said} ({pair})")
        if earlier[0] != number:
            counts["duplicate_judgements"] += 1
        elif query_id not in queries:
            unknown.append(f"{where}: field 'query-id': no query {query_id!r}")
        elif doc_id not in documents:
            unknown.append(f"{where}: field 'corpus-id': no document {doc_id!r}")
        else:
            judgements.append(Judgement(query_id, doc_id, relevance))
    if unknown and not allow_missing:
        shown = "; ".join(unknown[:_SHOWN]) + ("; ..." if len(unknown) > _SHOWN else "")
        raise DataError(f"{path}: {len(unknown)} of {len(seen)} rows name an unknown id: {shown}")
    if not judgements:
        skipped = f"; {len(unknown)} rows with an unknown id were skipped" if unknown else ""
        raise DataError(f"{path}: no judgements{skipped}")
    if unknown:
        counts["skipped_judgements"] += len(unknown)
    return judgements
