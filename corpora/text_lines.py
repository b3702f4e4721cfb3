"""Reads text files line by line, and says where they are malformed."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from corpora.tables import DataError


def read(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its end), no blank lines at the end of the file.

    Lines end at a line feed (or CR LF) and nowhere else; a byte-order mark is dropped.

    Args:
      path: a file in UTF-8, compressed if its name ends in `.gz`.

    Raises:
      DataError: another encoding, a blank line before others, a damaged gzip file, with file and line.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number, blank = 0, 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):  # binary files split at b"\n" only
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{error.object[error.start]:02x} at column {error.start + 1}"
                    raise DataError(f"{path}:{number}: not UTF-8: {byte}") from None
                text = text.removesuffix("\n").removesuffix("\r")
                if not text.strip(" "):
                    blank = blank or number
                elif blank:
                    raise DataError(f"{path}:{blank}: empty line; they are allowed only at the end")
                else:
                    yield number, text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}:{number + 1}: damaged gzip file: {error}") from None
