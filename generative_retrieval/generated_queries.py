"""Generated queries on disk: drawn in blocks that survive a kill, then put together to files for programs.

A folder holds

    manifest.json         what the queries are of: model, texts, how they are drawn
    blocks/00000.jsonl    {"doc_id": ..., "queries": [...]} a line, the documents of a block in order
    generated.jsonl       {"_id": ..., "text": ..., "doc_id": ..., "rank": ...} a line: every query, once for
                          each document; the rank of its document for a retriever, where one was asked
    queries.jsonl         those that are kept, in the same form, which is also that of BEIR's queries
    qrels.tsv             their documents, as in BEIR

The manifest comes first and each block appears whole, so a run that was stopped goes on with the blocks that
are missing, and several jobs may share the blocks.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from corpora.beir import HEADER
from corpora.tables import DataError
from eval.trec import replacing
from training import files
from training.progress import Progress

BLOCK_SIZE = 1_024  # documents
_MANIFEST, _BLOCKS = "manifest.json", "blocks"

# (first document, last + 1, what is told how many of them are done) -> the queries of each
Generate = Callable[[int, int, Callable[[int], None]], Sequence[Sequence[str]]]


class GeneratedQuery(NamedTuple):
    """One query of a document.

    Attributes:
      query_id: the document's id and the query's number.
      text: the query.
      doc_id: the document's id.
      row: the document's row.
      rank: of the document for a retriever, from 1; 0 where it was not found, -1 where none was asked.
    """

    query_id: str
    text: str
    doc_id: str
    row: int
    rank: int = -1


def write_blocks(
    folder: str | Path,
    about: Mapping[str, Any],
    doc_ids: Sequence[str],
    generate: Generate,
    *,
    title: str,
    block_size: int | None = None,
    process: int = 0,
    processes: int = 1,
) -> int:
    """Writes a process's share of the blocks, going on where an earlier call stopped.

    Args:
      folder: made if need be.
      about: all that the queries depend on, as JSON can hold it.
      doc_ids: of the documents, in the order of their rows.
      generate: see `Generate`.
      title: names the work where progress is shown.
      block_size: documents of a block; by default as many as in what is there, or else `BLOCK_SIZE`.
      process, processes: which process this is, from 0, and how many share the work.

    Returns:
      how many blocks are still missing, of all.

    Raises:
      DataError: the folder holds queries of something else; the fields that differ are named.
      ValueError: a number is out of range.
    """
    folder = Path(folder)
    if block_size is None:
        block_size = (_manifest(folder) or {}).get("block_size", BLOCK_SIZE)
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")
    if not 0 <= process < processes:
        raise ValueError(f"process is {process}; allowed: 0 to {processes - 1}, for {processes} processes")
    _claim(folder, files.plain({**about, "documents": len(doc_ids), "block_size": block_size}))
    count = -(-len(doc_ids) // block_size)
    mine = {n: range(n * block_size, min((n + 1) * block_size, len(doc_ids))) for n in range(count)}
    mine = {number: rows for number, rows in mine.items() if number % processes == process}
    wanted = [number for number in mine if not _block(folder, number).exists()]
    done = sum(len(rows) for number, rows in mine.items() if number not in wanted)
    progress = Progress(sum(map(len, mine.values())), unit="document", title=title, done=done)
    if wanted and done:
        progress.say(f"{title}: those of {done:,} documents are there from before, in {folder}")
    try:
        for number in wanted:
            rows = mine[number]
            made = generate(rows.start, rows.stop, lambda some, before=done: progress.update(before + some))
            with replacing(_block(folder, number)) as file:
                for row, queries in zip(rows, made, strict=True):
                    _line(file, {"doc_id": doc_ids[row], "queries": list(queries)})
            done += len(rows)
            progress.update(done)
    finally:
        progress.close()
    return sum(not _block(folder, number).exists() for number in range(count))


def read_blocks(folder: str | Path, doc_ids: Sequence[str]) -> list[GeneratedQuery]:
    """Returns every query that is not empty, those of a document once each, in the order of documents.

    Raises:
      DataError: a block is missing or damaged.
    """
    found, rows = [], iter(range(len(doc_ids)))
    for number in range(-(-len(doc_ids) // (_manifest(Path(folder)) or {}).get("block_size", BLOCK_SIZE))):
        file = _block(Path(folder), number)
        try:
            for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
                entry, row = json.loads(line), next(rows)
                if entry["doc_id"] != doc_ids[row]:
                    raise ValueError(f"document {entry['doc_id']!r} where {doc_ids[row]!r} is expected")
                texts = dict.fromkeys(text for text in entry["queries"] if text.strip())
                found += [
                    GeneratedQuery(f"{doc_ids[row]}#{at}", text, doc_ids[row], row)
                    for at, text in enumerate(texts)
                ]
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            raise DataError(f"{file} is missing or damaged ({error!r}); remove it and run again") from None
    return found


def publish(folder: str | Path, queries: Sequence[GeneratedQuery], kept: Sequence[GeneratedQuery]) -> None:
    """Writes generated.jsonl, and of those that are kept queries.jsonl and qrels.tsv; see the module."""
    folder = Path(folder)
    for name, rows in (("generated.jsonl", queries), ("queries.jsonl", kept)):
        with replacing(folder / name) as file:
            for query in rows:
                rank = {} if query.rank < 0 else {"rank": query.rank}
                _line(file, {"_id": query.query_id, "text": query.text, "doc_id": query.doc_id, **rank})
    with replacing(folder / "qrels.tsv") as file:
        file.write("\t".join(HEADER) + "\n")
        for query in kept:
            file.write(f"{query.query_id}\t{query.doc_id}\t1\n")


def _claim(folder: Path, manifest: Mapping[str, Any]) -> None:
    there = _manifest(folder)
    if there is None:
        with replacing(folder / _MANIFEST) as file:
            file.write(json.dumps(manifest, indent=1) + "\n")
        return
    before, now = files.flat(there), files.flat(manifest)
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if keys:
        shown = ", ".join(f"{key} is {before.get(key)!r} there and {now.get(key)!r} here" for key in keys[:3])
        raise DataError(
            f"{folder} holds queries of something else ({shown}); name another folder or remove it"
        )


def _manifest(folder: Path) -> dict[str, Any] | None:
    file = folder / _MANIFEST
    if not file.exists():
        return None
    try:
        manifest = json.loads(file.read_bytes())
        manifest["block_size"] // 1
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}); remove {folder} and generate again") from None
    return manifest


def _block(folder: Path, number: int) -> Path:
    return folder / _BLOCKS / f"{number:05}.jsonl"


def _line(file: IO[str], values: Mapping[str, Any]) -> None:
    file.write(json.dumps(values, ensure_ascii=False) + "\n")
