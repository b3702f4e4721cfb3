"""`beir_folder`: any collection in BEIR layout (see corpora.beir).

A folder is given by its path, or by a name under the folder that the environment variable
RETRIEVAX_DATA points to.
"""

import hashlib
import os
from pathlib import Path

from corpora import beir, dataset
from corpora.sources.builder import TablesBuilder
from corpora.tables import DataError, Tables


class BeirFolder(TablesBuilder):
    """Builder `beir_folder`.

    Args:
      folder: a path, or a name under RETRIEVAX_DATA.
      allow_missing: whether judgements that name an unknown query or document are skipped and
        counted, rather than refused.
    """

    def __init__(self, *, folder: str = "", allow_missing: bool = False, **kwargs):
        self._folder, self._allow_missing = find(folder), allow_missing
        super().__init__(**kwargs)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.VERSION} {self._allow_missing}".encode())
        for file in beir.files(self._folder):
            digest.update(file.name.encode())
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        return digest.hexdigest()

    def tables(self) -> Tables:
        return beir.read(self._folder, allow_missing=self._allow_missing)


def load(*, folder: str, allow_missing: bool = False) -> dataset.Dataset:
    """Returns the prepared collection; the arguments are those of `BeirFolder`."""
    return dataset.load(BeirFolder, folder=folder, allow_missing=allow_missing)


def find(folder: str) -> Path:
    """Returns the folder of a path, or of a name under RETRIEVAX_DATA.

    Raises:
      DataError: there is no such folder; the names under RETRIEVAX_DATA are listed.
    """
    data = os.environ.get("RETRIEVAX_DATA", "")
    candidates = [Path(folder).expanduser(), *([Path(data) / folder] if data else [])]
    found = next((path for path in candidates if folder and path.is_dir()), None)
    if found is None:
        there = sorted(p.parent.name for p in Path(data).glob("*/qrels")) if data else []
        hint = f"={data} has {', '.join(there) or 'none'}" if data else " is not set"
        raise DataError(
            f"data.folder: no folder {folder!r}; give a folder in BEIR layout (RETRIEVAX_DATA{hint})"
        )
    return found
