"""Which documents of a collection may be found: all, those of a file, or all but those of a file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.cli import UsageError


def live(
    doc_ids: Sequence[str], *, only: str | None = None, without: str | None = None, removed: str = ""
) -> np.ndarray | None:
    """Returns which documents may be found, bool [N]; None for all.

    Args:
      doc_ids: of all documents.
      only: a file of those that may, one id a line; None for all.
      without: a file of those that may not; None for none.
      removed: the same, as a config's docids.removed says; "" for none.

    Raises:
      UsageError: a file is not there or names a document that is not, or none is left.
    """
    barred = {"--without": without, "config.docids.removed": removed or None}
    given = {said_by: file for said_by, file in {"--only": only, **barred}.items() if file is not None}
    if not given:
        return None
    row_of = {doc_id: row for row, doc_id in enumerate(doc_ids)}
    live_N = np.full(len(doc_ids), only is None)
    for said_by, file in given.items():
        live_N[_rows(file, said_by, row_of)] = said_by == "--only"
    if not live_N.any():
        raise UsageError(f"{' and '.join(given)} leave no document to be found")
    return live_N


def _rows(file: str, said_by: str, row_of: Mapping[str, int]) -> list[int]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{said_by}: {file}: {getattr(error, 'strerror', None) or error}") from None
    named = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, doc_id in named:
        if doc_id not in row_of:
            raise UsageError(
                f"{said_by}: {file}:{number}: the collection has no document {json.dumps(doc_id)}"
            )
    return [row_of[doc_id] for _, doc_id in named]
