"""`triples`: training triples by text, as `triples.train.small.tsv` of MS MARCO (Bajaj et al., 2016).

A line is `query`, `relevant text`, `text that is not relevant`, with tabs between, in UTF-8; a file whose
name ends in `.gz` is compressed. Equal texts are one query, or one document. The third column is kept as
a judgement of relevance 0: `dual_encoder.negatives.judged` trains on it. All is held in memory.
"""

import hashlib
import itertools
from pathlib import Path

from corpora import dataset, text_lines
from corpora.sources.builder import TablesBuilder
from corpora.sources.hashes import file_digest, split_off
from corpora.tables import DataError, Document, Judgement, Query, Tables

COLUMNS = ("query", "positive", "negative")


class Triples(TablesBuilder):
    """Builder `triples`.

    Args:
      file: the triples.
      dev: fraction of the queries that are held out as split `dev`, with all their triples.
      test: likewise, as split `test`.
      seed: of which ones.
      limit: how many triples to read, from the start; 0 for all.
    """

    def __init__(
        self,
        *,
        file: str = "",
        dev: float = 0.0,
        test: float = 0.0,
        seed: int = 0,
        limit: int = 0,
        **kwargs,
    ):
        self._file, self._fractions = Path(file).expanduser(), {"dev": dev, "test": test}
        self._seed, self._limit = seed, limit
        if not self._file.is_file():
            raise DataError(
                f"data.file: no such file: {file!r}; expected triples, {', '.join(COLUMNS)} a line"
            )
        if limit < 0:
            raise DataError(f"data.limit is {limit}; it must be at least 0")
        super().__init__(**kwargs)

    def fingerprint(self) -> str:
        options = f"{self.VERSION} {self._fractions} {self._seed} {self._limit}"
        return hashlib.sha256(options.encode() + file_digest(self._file)).hexdigest()

    def tables(self) -> Tables:
        queries: dict[str, int] = {}
        documents: dict[str, int] = {}
        judged: list[dict[int, int]] = []
        counts = {"triples": 0, "contradictions": 0}
        lines = text_lines.read(self._file)
        for number, line in itertools.islice(lines, self._limit or None):
            query, *pair = self._columns(number, line)
            of_query = queries.setdefault(query, len(queries))
            if of_query == len(judged):
                judged.append({})
            for text, relevance in zip(pair, (1, 0), strict=True):
                document = documents.setdefault(text, len(documents))
                earlier = judged[of_query].setdefault(document, relevance)
                if earlier != relevance:  # said to be relevant once is relevant
                    counts["contradictions"] += 1
                    judged[of_query][document] = 1
            counts["triples"] += 1
        if not queries:
            raise DataError(f"{self._file}: no triples")
        qrels = {"train": [], "dev": [], "test": []}
        split = split_off(queries, self._fractions, self._seed)
        for query, row in queries.items():
            for document, relevance in judged[row].items():
                qrels[split[query]].append(Judgement(f"q{row}", f"d{document}", relevance))
        return Tables(
            documents=[Document(f"d{row}", "", text) for text, row in documents.items()],
            queries=[Query(f"q{row}", text) for text, row in queries.items()],
            qrels=qrels,
            counts=counts,
        )

    def _columns(self, number: int, line: str) -> list[str]:
        columns = line.split("\t")
        where = f"{self._file}:{number}"
        if len(columns) != len(COLUMNS):
            wanted = f"3 columns ({', '.join(COLUMNS)}), tab-separated"
            raise DataError(f"{where}: a line must have {wanted}, not {len(columns)}: {line[:80]!r}")
        for name, value in zip(COLUMNS, columns, strict=True):
            if not value.strip():
                raise DataError(f"{where}: column {name!r} is empty")
        if columns[1] == columns[2]:
            raise DataError(f"{where}: columns 'positive' and 'negative' are the same: {columns[1][:60]!r}")
        return columns


def load(*, file: str, dev: float = 0.0, test: float = 0.0, seed: int = 0, limit: int = 0) -> dataset.Dataset:
    """Returns the prepared collection; the arguments are those of `Triples`."""
    return dataset.load(Triples, file=file, dev=dev, test=test, seed=seed, limit=limit)
