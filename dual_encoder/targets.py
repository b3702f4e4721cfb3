"""Vectors that a student's queries are to be like: `(dataset, query_ids) -> float32 [Q, D]`.

A config's `batch.targets` names one, and its objective may be `objectives.imitation.imitated`. Letters: Q
queries, D width.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from corpora.dataset import Dataset
from corpora.tables import DataError
from dual_encoder.scorers import opener

Targets = Callable[[Dataset, Sequence[str]], np.ndarray]


def queries(run: str, batch_size: int = 256) -> Targets:
    """What the query tower of another run makes of the same queries.

    Args:
      run: the run directory of the teacher.
      batch_size: texts encoded at a time.

    Raises:
      DataError, SpecError, CheckpointError: see `scorers.trained`.
    """
    opened = opener(run, batch_size)
    return lambda dataset, query_ids: opened().queries([dataset.queries[q] for q in query_ids])[0]


def expanded(run: str, expansions: str, batch_size: int = 256) -> Targets:
    """What the query tower of another run makes of each query followed by an expansion.

    An expansion is what a language model has written about the query, such as a passage that would answer it
    (Wang et al., 2023, "Query2doc: Query Expansion with Large Language Models"). A query without one stays
    alone.

    Args:
      run: the run directory of the teacher; its `query_length` says how much of an expansion it reads.
      expansions: a file of JSON lines, each with `query_id` and `text`.
      batch_size: texts encoded at a time.

    Raises:
      DataError: the file is not there, or a line of it is malformed; or as `scorers.trained`.
      SpecError, CheckpointError: see `scorers.trained`.
    """
    opened, text_of = opener(run, batch_size), _read(expansions)

    def encode(dataset: Dataset, query_ids: Sequence[str]) -> np.ndarray:
        found = sum(query_id in text_of for query_id in query_ids)
        print(f"{expansions}: expansions of {found:,} of {len(query_ids):,} training queries", flush=True)
        if not found:
            raise DataError(f"{expansions} has no expansion of a training query of {dataset.name}")
        texts = [f"{dataset.queries[q]} {text_of.get(q, '')}".strip() for q in query_ids]
        return opened().queries(texts)[0]

    return encode


def _read(file: str) -> dict[str, str]:
    if not file:
        raise DataError("expansions is ''; allowed: a file of JSON lines with query_id and text")
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"expansions: {file!r}: {error.strerror or error}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            query_id, text = row["query_id"], row["text"]
        except (ValueError, KeyError, TypeError):
            query_id = text = None
        if not isinstance(query_id, str) or not isinstance(text, str):
            raise DataError(f"{file}: line {number}: expected JSON with the strings query_id and text")
        found[query_id] = text
    return found
