"""What rooms share about files and about settings kept in them as JSON."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest(file: Path) -> str:
    """Returns the SHA-256 of a file. Raises FileNotFoundError where there is none."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as JSON gives them back: tuples become lists."""
    return json.loads(json.dumps(values))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested settings as one mapping, so that two can be compared field by field.

    >>> flat({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}.{key}".lstrip(".")).items()}
