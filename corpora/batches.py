"""Training batches as a function of (seed, step), the same whatever the number of processes.

The global order of examples is drawn first (`grain`'s index shuffle, anew each epoch); the batch of
a step is a slice of that order; a process takes its slice of the batch. So the position to save is
the step, and a restart or another process count changes nothing.

Letters: B examples of this process, H listed negatives of a query, L length, P listed positives.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import grain
import numpy as np

from corpora.dataset import Dataset
from corpora.tables import DataError
from corpora.tokens import TokenTable

Batch = dict[str, np.ndarray]


class Order:
    """The global order of examples, shuffled anew in each epoch.

    Args:
      examples: how many there are.
      seed: of the shuffle.
      neighbors: how many consecutive examples stay together. Those of one file or story are each
        other's hard negatives in a batch. With more than 1, the `examples % neighbors` last ones of an
        epoch's cut are left out, others each epoch.

    Raises:
      ValueError: `neighbors` is below 1 or above `examples`.
    """

    def __init__(self, examples: int, seed: int, neighbors: int = 1):
        if not 1 <= neighbors <= examples:
            raise ValueError(f"neighbors is {neighbors}; allowed: 1 to {examples}, the number of examples")
        self._examples, self._neighbors = examples, neighbors
        self._blocks = examples // neighbors
        self._order = grain.MapDataset.range(self._blocks).seed(seed).shuffle().repeat()

    def rows(self, step: int, batch_size: int, process: int = 0, processes: int = 1) -> np.ndarray:
        """Returns the examples of one process at one step, int64 [batch_size / processes]."""
        local = batch_size // processes
        first = step * batch_size + process * local
        return np.array([self._example(position) for position in range(first, first + local)])

    def _example(self, position: int) -> int:
        block, member = divmod(position, self._neighbors)
        if self._neighbors == 1:
            return self._order[block]
        epoch = block // self._blocks
        return (self._order[block] * self._neighbors + member + epoch) % self._examples


class Pairs(NamedTuple):
    """The training examples of a split: every (query, relevant document), and what each query calls for.

    Attributes:
      query_rows: int32 [examples], row in `query_tokens` of each example.
      document_rows: int32 [examples], row of the relevant document.
      positives: int32 [queries, P], rows of all documents relevant to a query, -1 beyond.
      query_ids: ids of the queries, in row order.
    """

    query_rows: np.ndarray
    document_rows: np.ndarray
    positives: np.ndarray
    query_ids: list[str]


def training_pairs(dataset: Dataset, split: str) -> Pairs:
    """Lists the pairs of a split with relevance above 0.

    Raises:
      DataError: the split does not exist or judges nothing relevant.
    """
    row_of = {doc_id: row for row, doc_id in enumerate(dataset.doc_ids)}
    query_ids, relevant = [], []
    for query_id, judgements in dataset.split(split).items():
        rows = [row_of[doc_id] for doc_id, relevance in judgements.items() if relevance > 0]
        if rows:
            query_ids.append(query_id)
            relevant.append(rows)
    if not query_ids:
        raise DataError(f"{dataset.name}: split {split!r} judges no document relevant; nothing to train on")
    positives = np.full((len(query_ids), max(map(len, relevant))), -1, np.int32)
    for row, documents in enumerate(relevant):
        positives[row, : len(documents)] = documents
    return Pairs(
        query_rows=np.repeat(np.arange(len(query_ids), dtype=np.int32), [len(r) for r in relevant]),
        document_rows=np.concatenate(relevant).astype(np.int32),
        positives=positives,
        query_ids=query_ids,
    )


def contrastive(
    pairs: Pairs,
    query_tokens: TokenTable,
    document_tokens: TokenTable,
    *,
    query_length: int,
    document_length: int,
    negatives: np.ndarray | None = None,
    negatives_per_query: int = 0,
    seed: int = 0,
) -> Callable[[np.ndarray, int], Batch]:
    """Returns the function that makes a batch of the given examples at a step.

    The batch has, for B examples and 1 + H documents each (the relevant one first):
    `query_{tokens,mask,segments}` [B, L], `document_{tokens,mask,segments}` [B, 1 + H, L],
    `document_rows` [B, 1 + H] (-1: no document there) and `positives` [B, P], all int32.

    Args:
      pairs: the examples.
      query_tokens: in the row order of `pairs.query_ids`.
      document_tokens: in the row order of the corpus.
      query_length: tokens a query is cut or padded to; `document_length` likewise.
      negatives: int32 [queries, M], mined documents of each query, -1 beyond.
      negatives_per_query: H; drawn from `negatives` anew at each step by (seed, step, example).

    Raises:
      ValueError: negatives are asked for and not given, or more than the table lists.
    """
    if negatives_per_query and negatives is None:
        raise ValueError(f"negatives_per_query is {negatives_per_query}, but no table of negatives is given")
    if negatives_per_query and negatives_per_query > negatives.shape[1]:
        raise ValueError(
            f"negatives_per_query is {negatives_per_query}, but the table lists {negatives.shape[1]} a query"
        )

    def batch(examples_B: np.ndarray, step: int) -> Batch:
        query_rows_B = pairs.query_rows[examples_B]
        document_rows_BH = pairs.document_rows[examples_B][:, None]
        if negatives_per_query:
            drawn = [
                _draw(row, negatives_per_query, np.random.default_rng((seed, step, int(example))))
                for example, row in zip(examples_B, negatives[query_rows_B], strict=True)
            ]
            document_rows_BH = np.concatenate([document_rows_BH, np.stack(drawn)], axis=1)
        queries = query_tokens.rectangle(query_rows_B, query_length)
        documents = document_tokens.rectangle(document_rows_BH.reshape(-1), document_length)
        shape = (*document_rows_BH.shape, document_length)
        return {
            **{f"query_{name}": array for name, array in queries.items()},
            **{f"document_{name}": array.reshape(shape) for name, array in documents.items()},
            "document_rows": document_rows_BH.astype(np.int32),
            "positives": pairs.positives[query_rows_B],
        }

    return batch


def _draw(row_M: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of a query's negatives in random order, -1 where it has fewer."""
    drawn = rng.permutation(row_M[row_M >= 0])[:count]
    return np.pad(drawn, (0, count - len(drawn)), constant_values=-1)


def stream(
    make_batch: Callable[[np.ndarray, int], Batch],
    order: Order,
    *,
    batch_size: int,
    first_step: int,
    total_steps: int,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
) -> Iterator[Mapping[str, np.ndarray]]:
    """Yields this process's batches of steps first_step ... total_steps - 1, made ahead by threads.

    Raises:
      ValueError: the batch does not divide among the processes.
    """
    if batch_size % processes:
        raise ValueError(f"batch_size {batch_size} does not divide among {processes} processes")
    if first_step >= total_steps:
        return iter(())
    steps = grain.MapDataset.range(first_step, total_steps).map(
        lambda step: make_batch(order.rows(int(step), batch_size, process, processes), int(step))
    )
    return iter(
        steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    )
