"""The TFDS builder that every source shares: three tables, one BuilderConfig each.

A source subclasses `TablesBuilder` (TFDS builders are classes found by name) and says two things:
a fingerprint of what it would read, and the tables. `corpora.dataset.load` prepares the three
configs into a folder named by the fingerprint and reads them back.
"""

import abc
import re

import numpy as np
import tensorflow_datasets as tfds

from corpora.tables import DataError, Tables

_TEXT = tfds.features.Text()
FEATURES = {
    "documents": {"doc_id": _TEXT, "title": _TEXT, "text": _TEXT},
    "queries": {"query_id": _TEXT, "text": _TEXT},
    "qrels": {"query_id": _TEXT, "doc_id": _TEXT, "relevance": tfds.features.Scalar(dtype=np.int32)},
}


class TablesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes a source's tables as ArrayRecord: splits `documents`, `queries`, and the qrels' own."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in FEATURES]  # noqa: RUF012

    def __init__(self, **kwargs):
        # ArrayRecord is the format that is read at random and without TensorFlow.
        super().__init__(**{"file_format": "array_record", **kwargs})

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Returns a hash that changes whenever `tables()` could return something else."""

    @abc.abstractmethod
    def tables(self) -> Tables:
        """Reads and checks the source. Raises corpora.tables.DataError on bad input."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(FEATURES[self.builder_config.name]),
            disable_shuffling=True,  # row numbers are the order of the source
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        tables = self.tables()
        config = self.builder_config.name
        if config == "qrels":
            for split in tables.qrels:
                # TFDS writes others too, and then cannot read them.
                if not re.fullmatch(r"[\w-]+", split) or split == "all":
                    raise DataError(
                        f"{self.name}: split {split!r}; allowed as its name: letters, digits, _ and -, "
                        "but not 'all'"
                    )
            return {split: self._generate_examples(rows) for split, rows in tables.qrels.items() if rows}
        return {config: self._generate_examples(getattr(tables, config))}

    def _generate_examples(self, rows):
        yield from ((number, row._asdict()) for number, row in enumerate(rows))
