"""Digests of source files, and splits by hash: what names a prepared folder, and what holds queries out."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from corpora.tables import DataError

_WHOLE_UP_TO = 1 << 28  # bytes
_END = 1 << 20


def file_digest(path: Path) -> bytes:
    """Returns a hash that changes whenever the file does.

    It is of the content. A file above 256 MiB is not read through at every start: its size, the time of its
    last change, and its first and last MiB stand for it.
    """
    stat = path.stat()
    with path.open("rb") as file:
        if stat.st_size <= _WHOLE_UP_TO:
            return hashlib.file_digest(file, "sha256").digest()
        digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        digest.update(file.read(_END))
        file.seek(-_END, 2)
        digest.update(file.read(_END))
    return digest.digest()


def split_off(names: Iterable[str], fractions: Mapping[str, float], seed: int = 0) -> dict[str, str]:
    """Assigns names to splits: of each of `fractions` that share, at least one, and to `train` the rest.

    They are taken in the order of their hashes, so that neither their order nor their number of mentions
    matters.

    Args:
      names: such as queries.
      fractions: by split, 0 to 1; a split of 0 is not made.
      seed: another one gives other splits.

    Raises:
      DataError: a fraction out of range, or nothing is left for `train`.
    """
    for split, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise DataError(f"data.{split} is {fraction}; allowed: 0 to below 1")
    ordered = drawn(names, seed)
    splits = []
    for split, fraction in fractions.items():
        splits += [split] * (max(1, round(fraction * len(ordered))) if fraction else 0)
    if len(splits) >= len(ordered):
        shares = ", ".join(f"{split} {fraction}" for split, fraction in fractions.items())
        raise DataError(f"data: of {len(ordered)} queries none is left for train; held out: {shares}")
    splits += ["train"] * (len(ordered) - len(splits))
    return dict(zip(ordered, splits, strict=True))


def drawn(names: Iterable[str], seed: int = 0) -> list[str]:
    """Returns different names in the order of their hashes, which is as good as any drawn at random.

    The first n of many are among the first n + 1, and those of a part come in the same order as in the whole.
    """
    return sorted(set(names), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
