"""TREC's run and qrels files, in and out.

    run    query_id Q0 doc_id rank score tag     rank and tag are not read, nor is anything after the tag
    qrels  query_id 0 doc_id grade               the second column is not read

Both are UTF-8, columns separated by ASCII white space. So white space in an id is percent-encoded in the
file, and so is the percent sign itself: "Ann Lee" is written Ann%20Lee, "50%" is 50%25. Reading decodes it.
An id of a foreign file that happens to hold such a code, as ids made of URLs may, is decoded as well.
"""

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from eval import measures

# White space of any script, controls, "%", and the byte order mark, which readers drop at a file's start.
# Surrogates are listed to be refused: UTF-8 cannot hold one alone.
_ENCODED = re.compile("[\\s\\x00-\\x1f\\x7f%\ufeff\ud800-\udfff]")


def read_run(path: str | os.PathLike) -> measures.Run:
    """The run in a file, query_id -> doc_id -> score, the score rounded to float32 as trec_eval holds it.

    Raises:
      ValueError: naming file, line, field and value: a row with fewer than 6 columns, a score that is no
        number or NaN, a document listed twice for a query, an id that is not UTF-8.
    """
    run: measures.Run = {}
    for place, columns in _rows(path, "query_id Q0 doc_id rank score tag", more=True):
        query_id, doc_id = _decoded(place, "query_id", columns[0]), _decoded(place, "doc_id", columns[2])
        try:
            score = float(columns[4])
        except ValueError:
            score = float("nan")
        if score != score:
            raise ValueError(f"{place}: score {_shown(columns[4])} is not a number")
        documents = run.setdefault(query_id, {})
        if doc_id in documents:
            raise ValueError(f"{place}: doc_id {doc_id!r} is listed twice for query_id {query_id!r}")
        documents[doc_id] = score
    for documents in run.values():
        documents.update(zip(documents, measures.float32_scores(documents).tolist(), strict=True))
    return run


def write_run(path: str | os.PathLike, run: measures.Run, tag: str = "retrievax") -> None:
    """Writes a run with scores that give back the same float32, and ranks from 1 in trec_eval's order.

    Queries keep their order. A query without documents has no row, so reading does not bring it back; to
    `measures.evaluate` that is the same. The file appears whole or not at all.

    Raises:
      ValueError: an id that is empty or that UTF-8 cannot hold, or a NaN score.
    """
    tag = _encoded("tag", tag)
    with replacing(path) as file:
        for query_id, documents in run.items():
            query = _encoded("query_id", query_id)
            doc_ids = measures.rank(documents, f" of query {query_id!r}")
            ranked = {doc_id: documents[doc_id] for doc_id in doc_ids}
            scores = measures.float32_scores(ranked).astype(str)
            for i, (doc_id, score) in enumerate(zip(doc_ids, scores.tolist(), strict=True), start=1):
                file.write(f"{query} Q0 {_encoded('doc_id', doc_id)} {i} {score} {tag}\n")


def read_qrels(path: str | os.PathLike) -> measures.Qrels:
    """The judgments in a file, query_id -> doc_id -> grade.

    Raises:
      ValueError: naming file, line, field and value: a row that has not 4 columns, a grade that is no
        integer, a document judged twice for a query, an id that is not UTF-8.
    """
    qrels: measures.Qrels = {}
    for place, columns in _rows(path, "query_id 0 doc_id grade", more=False):
        query_id, doc_id = _decoded(place, "query_id", columns[0]), _decoded(place, "doc_id", columns[2])
        if not re.fullmatch(rb"[+-]?[0-9]+", columns[3]):
            raise ValueError(f"{place}: grade {_shown(columns[3])} is not an integer")
        grades = qrels.setdefault(query_id, {})
        if doc_id in grades:
            raise ValueError(f"{place}: doc_id {doc_id!r} is judged twice for query_id {query_id!r}")
        grades[doc_id] = int(columns[3])
    return qrels


def write_qrels(path: str | os.PathLike, qrels: measures.Qrels) -> None:
    """Writes judgments in their order; ValueError on an id as in `write_run`, or a grade not an integer."""
    with replacing(path) as file:
        for query_id, grades in qrels.items():
            query = _encoded("query_id", query_id)
            for doc_id, grade in grades.items():
                if not isinstance(grade, (int, np.integer)):
                    raise ValueError(f"the grade of ({query_id!r}, {doc_id!r}) is {grade!r}, not an integer")
                file.write(f"{query} 0 {_encoded('doc_id', doc_id)} {int(grade)}\n")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[str]]:
    """A text file to write that takes the place of `path` only once it is whole; makes the folder.

    Half a run file would be read without complaint and only score worse.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the move is atomic. (tempfile would make it readable by its owner alone.)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _rows(path: str | os.PathLike, layout: str, *, more: bool) -> Iterator[tuple[str, list[bytes]]]:
    """("file:line", columns) for every row that is not blank.

    Bytes, because `str.split` would also split at the no-break space inside a foreign id.
    """
    number_of_columns = len(layout.split())
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            columns = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").split()
            if not columns:
                continue
            place = f"{os.fspath(path)}:{number}"
            if len(columns) < number_of_columns or (len(columns) > number_of_columns and not more):
                raise ValueError(
                    f"{place}: the row {_shown(line.strip())} has {len(columns)} columns, not {layout!r}"
                )
            yield place, columns


def _encoded(field: str, value: str) -> str:
    if not value:
        raise ValueError(f"{field} is empty; a TREC file has no way to write it")
    try:
        return _ENCODED.sub(lambda match: urllib.parse.quote(match[0], safe=""), value)
    except UnicodeEncodeError as error:
        raise ValueError(f"{field} {value!r} holds a lone surrogate, which UTF-8 cannot write") from error


def _decoded(place: str, field: str, value: bytes) -> str:
    try:
        text = value.decode()
        return urllib.parse.unquote(text, errors="strict") if "%" in text else text
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: {field} {_shown(value)} is not UTF-8") from error


def _shown(value: bytes) -> str:
    return repr(value.decode(errors="backslashreplace"))
