"""Vectors on disk: written in shards that survive a kill, and read back whole or not at all.

A store is a folder:

    manifest.json       what the vectors are of (model, tokenizer, texts), how many, how wide
    ids.json            the ids of the texts, in order
    shard-00000.npy     float32 [rows, D], the vectors of texts 0 to shard_size - 1; and so on
    shard-00000.json    the shard's rows and SHA-256, written once the shard is there

The manifest comes first and is the same from every process; a shard counts once its own JSON is there,
so no process has to be the last. A text may have several rows (passages), which stand together.

Letters: T texts, R rows, D width.
"""

import contextlib
import functools
import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corpora.tables import DataError
from training import files
from training.progress import Progress

SHARD_SIZE = 16_384  # texts
_ABANDONED = 3_600  # seconds after which a partial file is nobody's any more
_MANIFEST, _IDS = "manifest.json", "ids.json"

# (first text, last + 1, what is told how many of them are done) -> vectors [R, D], text of each row [R]
Encode = Callable[[int, int, Callable[[float], None]], tuple[np.ndarray, np.ndarray]]


class VectorStore:
    """A complete store, opened for reading; make one with `write`.

    Attributes:
      manifest: what `write` was told, with "texts", "width" and "shard_size".
      text_of_row: int32 [R], the number of the text that each row is of, ascending.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]):
        self._folder, self.manifest = folder, manifest
        self._rows = [shard["rows"] for shard in shards]
        counts = [np.asarray(_rows_of_texts(manifest, number, shard)) for number, shard in enumerate(shards)]
        self.text_of_row = np.repeat(np.arange(manifest["texts"], dtype=np.int32), np.concatenate(counts))

    @classmethod
    def open(cls, folder: str | Path) -> "VectorStore":
        """Opens a store and reads every byte of it once, to see that it is what was written.

        Raises:
          DataError: there is none, a shard is missing, or a file is damaged; the message names it.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        if manifest is None:
            raise DataError(f"no vectors in {folder}: there is no {_MANIFEST}")
        if _sha256(folder / _IDS) != manifest["ids"]:
            raise DataError(f"{folder / _IDS} is missing or damaged; remove {folder} and encode again")
        shards = [_read_record(folder, manifest, number) for number in range(_number_of_shards(manifest))]
        missing = [number for number, shard in enumerate(shards) if shard is None]
        if missing:
            raise DataError(
                f"{folder} is not complete: {len(missing)} of {len(shards)} shards are not written yet, "
                f"first {_shard_file(folder, missing[0]).name}; encode again to go on"
            )
        for number, shard in enumerate(shards):
            if not _is_whole(folder, number, shard):
                raise DataError(
                    f"{_shard_file(folder, number)} is missing or damaged: its bytes are not those that were "
                    "written; encode again and only what is damaged is made anew"
                )
        return cls(folder, manifest, shards)

    def __len__(self) -> int:
        """R, the number of rows."""
        return len(self.text_of_row)

    @functools.cached_property
    def ids(self) -> list[str]:
        """The ids of the texts [T]; that of row r is `ids[text_of_row[r]]`."""
        return json.loads((self._folder / _IDS).read_bytes())

    def shards(self) -> Iterator[np.ndarray]:
        """Yields the shards in order, float32 [rows, D], mapped from disk rather than read."""
        for number in range(len(self._rows)):
            yield np.load(_shard_file(self._folder, number), mmap_mode="r")

    def vectors(self) -> np.ndarray:
        """Returns all rows, float32 [R, D]: mapped from disk where there is one shard, else in memory."""
        shards = list(self.shards())
        return shards[0] if len(shards) == 1 else np.concatenate(shards)

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the given rows, float32 [len(rows), D], reading these alone.

        Raises:
          IndexError: a row below 0 or above R - 1.
        """
        rows = np.asarray(rows, np.int64)
        wrong = rows[(rows < 0) | (rows >= len(self))]
        if wrong.size:
            raise IndexError(f"row is {wrong[0]}; allowed: 0 to {len(self) - 1}")
        ends = np.cumsum(self._rows)
        shard_of_row = np.searchsorted(ends, rows, side="right")
        found = np.empty((len(rows), self.manifest["width"]), np.float32)
        for number in np.unique(shard_of_row):
            here = shard_of_row == number
            shard = np.load(_shard_file(self._folder, number), mmap_mode="r")
            found[here] = shard[rows[here] - (ends[number] - self._rows[number])]
        return found


def write(
    folder: str | Path,
    about: Mapping[str, Any],
    ids: Sequence[str],
    width: int,
    encode: Encode,
    *,
    title: str,
    shard_size: int | None = None,
    process: int = 0,
    processes: int = 1,
    shown: Callable[[], Mapping[str, str]] = dict,
) -> int:
    """Writes a process's share of a store, going on where an earlier call stopped.

    Shards that are there and whole are kept, others are made anew. Several processes, on one machine or
    many with one file system, each write every `processes`-th shard and need not know of each other.

    Args:
      folder: made if need be.
      about: what the vectors are of, as JSON can hold it: all that they depend on.
      ids: of the texts [T].
      width: D.
      encode: see `Encode`; the texts of its rows are counted from its first one, ascending, each there.
      title: names the work where progress is shown.
      shard_size: texts of a shard; by default as many as in what is there, or else `SHARD_SIZE`.
      process: which of the processes this is, from 0.
      processes: how many share the work.
      shown: returns what is shown beside the progress, by name.

    Returns:
      how many shards of the whole store are still missing: 0 once `VectorStore.open` can open it.

    Raises:
      DataError: the folder holds vectors of something else; the fields that differ are named.
      ValueError: no texts, a number out of range, or vectors that are not finite float32 [R, D].
    """
    folder = Path(folder)
    if not ids:
        raise ValueError(f"ids is empty; {folder} would hold nothing")
    if shard_size is None:
        shard_size = (_read_manifest(folder) or {}).get("shard_size", SHARD_SIZE)
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; it must be at least 1")
    if not 0 <= process < processes:
        raise ValueError(f"process is {process}; allowed: 0 to {processes - 1}, for {processes} processes")
    content = json.dumps(list(ids), ensure_ascii=True).encode()
    sizes = {"texts": len(ids), "width": width, "shard_size": shard_size}
    manifest = files.plain({**about, **sizes, "ids": hashlib.sha256(content).hexdigest()})
    _claim(folder, manifest, content)

    mine = list(range(process, _number_of_shards(manifest), processes))
    records = {number: _read_record(folder, manifest, number) for number in mine}
    wanted = [number for number in mine if not _is_whole(folder, number, records[number])]
    total, kept = (sum(len(_texts(manifest, n)) for n in which) for which in (mine, set(mine) - set(wanted)))
    progress = Progress(total, unit="text", title=title, done=kept)
    if wanted and kept:
        progress.say(f"{title}: {kept:,} of {total:,} texts are there from before, in {folder}")
    done = kept
    try:
        for number in wanted:
            if records[number] is not None:
                progress.say(f"{title}: {_shard_file(folder, number)} is damaged and made anew")
            texts, before = _texts(manifest, number), done
            vectors_RD, text_of_row_R = encode(
                texts.start,
                texts.stop,
                lambda count, before=before: progress.update(before + int(count), shown()),
            )
            _write_shard(folder, manifest, number, vectors_RD, text_of_row_R)
            done += len(texts)
            progress.update(done)
    finally:
        progress.close()
    missing = sum(_read_record(folder, manifest, n) is None for n in range(_number_of_shards(manifest)))
    if not missing:  # what a kill left half-written, unless another job may be at it
        for partial in folder.glob(".*.part"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - partial.stat().st_mtime > _ABANDONED:
                    partial.unlink()
    return missing


def are_unit(vectors_ND: np.ndarray) -> bool:
    """Whether vectors have length 1, but for those of empty texts, which are zero."""
    lengths_N = np.linalg.norm(vectors_ND, axis=1)
    return bool(((np.abs(lengths_N - 1) < 1e-2) | (lengths_N == 0)).all() and (lengths_N > 0).any())


def differences(folder: str | Path, about: Mapping[str, Any]) -> list[str]:
    """What of `about` is otherwise in a store, each as "field is A there and B here"; [] without a store."""
    there = _read_manifest(Path(folder))
    if there is None:
        return []
    there, here = files.flat(there), files.flat(files.plain(about))
    return [
        f"{key} is {_shown(there.get(key))} there and {_shown(here[key])} here"
        for key in here
        if there.get(key) != here[key]
    ]


def _claim(folder: Path, manifest: Mapping[str, Any], ids: bytes) -> None:
    differing = differences(folder, manifest)
    if differing:
        shown = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
        raise DataError(
            f"{folder} holds vectors of something else ({shown}); name another folder or remove it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _MANIFEST).exists() or _sha256(folder / _IDS) != manifest["ids"]:
        with _replacing(folder / _IDS) as partial:
            partial.write_bytes(ids)
        with _replacing(folder / _MANIFEST) as partial:
            partial.write_text(json.dumps(manifest, indent=1) + "\n")


def _write_shard(
    folder: Path, manifest: Mapping[str, Any], number: int, vectors_RD: np.ndarray, text_of_row_R: np.ndarray
) -> None:
    texts = _texts(manifest, number)
    rows_of_text = np.bincount(text_of_row_R, minlength=len(texts))
    if vectors_RD.shape != (len(text_of_row_R), manifest["width"]) or vectors_RD.dtype != np.float32:
        raise ValueError(
            f"vectors are {vectors_RD.dtype} {vectors_RD.shape}; expected float32 "
            f"{(len(text_of_row_R), manifest['width'])}"
        )
    if (np.diff(text_of_row_R) < 0).any() or len(rows_of_text) != len(texts) or not rows_of_text.all():
        raise ValueError(f"the rows must be of the texts 0 to {len(texts) - 1}, ascending, each there")
    bad_R = ~np.isfinite(vectors_RD).all(axis=1)
    if bad_R.any():
        raise ValueError(
            f"the vector of text {texts.start + int(text_of_row_R[bad_R.argmax()])} has NaN or infinity"
        )
    file = _shard_file(folder, number)
    with _replacing(file) as partial:
        with partial.open("wb") as handle:
            np.save(handle, vectors_RD)
        # Of what lies on disk, not of what was to be written.
        record = {"manifest": _digest(manifest), "rows": len(vectors_RD), "sha256": _sha256(partial)}
    if len(vectors_RD) != len(texts):
        record["rows_of_text"] = rows_of_text.tolist()
    with _replacing(_shard_record(folder, number)) as partial:
        partial.write_text(json.dumps(record) + "\n")


def _read_record(folder: Path, manifest: Mapping[str, Any], number: int) -> dict[str, Any] | None:
    """What was written of a shard; None if it was not, or is of another store."""
    try:
        record = json.loads(_shard_record(folder, number).read_bytes())
        fits = record["rows"] == sum(_rows_of_texts(manifest, number, record))
        return record if fits and record["manifest"] == _digest(manifest) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _is_whole(folder: Path, number: int, record: Mapping[str, Any] | None) -> bool:
    return record is not None and _sha256(_shard_file(folder, number)) == record["sha256"]


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    file = folder / _MANIFEST
    if not file.exists():
        return None
    try:
        manifest = json.loads(file.read_bytes())
        _number_of_shards(manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}); remove {folder} and encode again") from error
    return manifest


def _rows_of_texts(manifest: Mapping[str, Any], number: int, record: Mapping[str, Any]) -> Sequence[int]:
    texts = len(_texts(manifest, number))
    counts = record.get("rows_of_text", [1] * texts)
    return counts if len(counts) == texts else []


def _texts(manifest: Mapping[str, Any], number: int) -> range:
    start = number * manifest["shard_size"]
    return range(start, min(start + manifest["shard_size"], manifest["texts"]))


def _number_of_shards(manifest: Mapping[str, Any]) -> int:
    return -(-manifest["texts"] // manifest["shard_size"])


def _shard_file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05}.npy"


def _shard_record(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05}.json"


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once all is written."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # of no other job on any host
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(file: Path) -> str | None:
    try:
        return files.digest(file)
    except FileNotFoundError:
        return None


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _shown(value: Any) -> str:
    """A hash by its beginning."""
    is_hash = isinstance(value, str) and re.fullmatch("[0-9a-f]{16,}", value)
    return value[:12] if is_hash else repr(value)
