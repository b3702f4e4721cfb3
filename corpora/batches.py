"""Training batches as a function of (seed, step), the same whatever the number of processes.

The global order of examples is drawn first (a permutation, anew each epoch); the batch of a step is a
slice of that order; a process takes its slice of the batch. So the position to save is the step, and a
restart or another process count changes nothing. The length that a batch is padded to, one of a few, is
that of the whole batch: it too is the same on every process.

Letters: B examples of a batch, D width of a vector, H listed negatives of a query, L length, M mined
negatives, P listed positives, W batches of a window.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import grain
import numpy as np

from corpora.dataset import Dataset
from corpora.lengths import bucket, ladder
from corpora.margin_bins import chances
from corpora.random_bits import random_bits
from corpora.tables import DataError
from corpora.tokens import TokenTable

Batch = dict[str, np.ndarray]
_WINDOWS = 1  # tells the random numbers of windows from those of epochs


class Order:
    """The global order of examples, shuffled anew in each epoch.

    Args:
      examples: how many there are.
      seed: of the shuffle.
      neighbors: how many consecutive examples stay together. Those of one file or story are each
        other's hard negatives in a batch. With more than 1, the `examples % neighbors` last ones of an
        epoch's cut are left out, others each epoch.
      length_window: W, to put examples of like length together: of the examples of each W batches those
        of one epoch are sorted by length and cut to batches again, whose order is shuffled. The
        longest then pad only each other; but a query also meets only documents of like length as
        its in-batch negatives, the more so the larger W. 0 for none.
      lengths: int [examples], tokens of each; needed with a `length_window`.

    Raises:
      ValueError: `neighbors` is below 1 or above `examples`; `length_window` is below 0, or given together
        with neighbors, which it would part, or without `lengths`.
    """

    def __init__(
        self,
        examples: int,
        seed: int,
        neighbors: int = 1,
        *,
        length_window: int = 0,
        lengths: np.ndarray | None = None,
    ):
        if not 1 <= neighbors <= examples:
            raise ValueError(f"neighbors is {neighbors}; allowed: 1 to {examples}, the number of examples")
        if length_window < 0 or (length_window and neighbors > 1):
            raise ValueError(
                f"length_window is {length_window} and neighbors {neighbors}; allowed: a length_window of 0 "
                "or more, above 0 only with neighbors 1, for it parts them"
            )
        if length_window and (lengths is None or len(lengths) != examples):
            given = "no" if lengths is None else len(lengths)
            raise ValueError(f"length_window is {length_window} with {given} lengths; needed: {examples}")
        self._examples, self._seed, self._neighbors = examples, seed, neighbors
        self._window, self._lengths = length_window, lengths
        # The same epoch, and window, is asked for many times over.
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffled)
        self._batches = functools.lru_cache(maxsize=2)(self._grouped)

    def rows(self, step: int, batch_size: int) -> np.ndarray:
        """Returns the examples of one step, over all processes, int64 [batch_size]."""
        if self._window:
            window, number = divmod(step, self._window)
            return self._batches(window, batch_size)[number]
        return self.between(step * batch_size, (step + 1) * batch_size)

    def between(self, start: int, end: int) -> np.ndarray:
        """Returns the examples at positions start ... end - 1 of the shuffled order, whatever the window."""
        return np.concatenate(self._parts(start, end))

    def _parts(self, start: int, end: int) -> list[np.ndarray]:
        """The examples at positions start ... end - 1 of the shuffled order, those of each epoch apart."""
        parts = []
        while start < end:
            epoch, first = divmod(start, self._examples - self._examples % self._neighbors)
            parts.append(self._epoch(epoch)[first : first + end - start])
            start += len(parts[-1])
        return parts

    def _shuffled(self, epoch: int) -> np.ndarray:
        """The examples of an epoch in the order of their positions."""
        blocks = np.random.default_rng((self._seed, epoch)).permutation(self._examples // self._neighbors)
        members = blocks[:, None] * self._neighbors + np.arange(self._neighbors)
        return (members.reshape(-1) + epoch) % self._examples if self._neighbors > 1 else blocks

    def _grouped(self, window: int, batch_size: int) -> np.ndarray:
        """The batches [W, B] of a window. Whatever it moves stays in its epoch."""
        first, size = window * self._window * batch_size, self._window * batch_size
        parts = self._parts(first, first + size)
        by_length = [part[np.argsort(self._lengths[part], kind="stable")] for part in parts]
        rows_WB = np.concatenate(by_length).reshape(self._window, batch_size)
        epoch_WB = np.repeat(np.arange(len(parts)), [len(part) for part in parts]).reshape(rows_WB.shape)
        rng = np.random.default_rng((self._seed, window, _WINDOWS))
        for epoch in range(len(parts)):
            whole = np.flatnonzero((epoch_WB == epoch).all(axis=1))
            rows_WB[whole] = rows_WB[rng.permutation(whole)]
        return rows_WB


class Pairs(NamedTuple):
    """The training examples of a split: every (query, relevant document), and what each query calls for.

    Attributes:
      query_rows: int32 [examples], row in `query_tokens` of each example.
      document_rows: int32 [examples], row of the relevant document.
      positives: int32 [queries, P], rows of all documents relevant to a query, -1 beyond.
      query_ids: ids of the queries, in row order.
      split: whose they are.
    """

    query_rows: np.ndarray
    document_rows: np.ndarray
    positives: np.ndarray
    query_ids: list[str]
    split: str = "train"


class Teacher(NamedTuple):
    """What a teacher says of the documents that a query is trained with.

    Attributes:
      positives: float32 [queries, P], its scores of `Pairs.positives`, NaN where there is none.
      negatives: float32 [queries, M], those of the mined negatives, or None where none are mined.
    """

    positives: np.ndarray
    negatives: np.ndarray | None = None


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
        split=split,
    )


def example_lengths(pairs: Pairs, query_tokens: TokenTable, document_tokens: TokenTable) -> np.ndarray:
    """Returns int64 [examples], the tokens of each pair's query and document; for `Order`'s length_window.

    Of a document in passages the longest counts. Drawn negatives do not, since every step draws others.
    """
    queries, documents = query_tokens.text_lengths(), document_tokens.text_lengths()
    return queries[pairs.query_rows] + documents[pairs.document_rows]


def contrastive(
    pairs: Pairs,
    query_tokens: TokenTable,
    document_tokens: TokenTable,
    *,
    query_length: int,
    document_length: int,
    negatives: np.ndarray | None = None,
    negatives_per_query: int = 0,
    teacher: Teacher | None = None,
    targets: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    margin_bins: int = 0,
    seed: int = 0,
) -> Callable[..., Batch]:
    """Returns the function `(examples [B] of the whole batch, step, part=all) -> batch of that part`.

    The batch has, for B examples and 1 + H documents each (the relevant one first):
    `query_{tokens,mask,segments}` [B, L], `document_{tokens,mask,segments}` [B, 1 + H, L],
    `document_rows` [B, 1 + H] (-1: no document there) and `positives` [B, P], all int32; with a teacher also
    `teacher` float32 [B, 1 + H], NaN where there is no document, with targets `target` float32 [B, D], and
    with groups `group` int32 [B]. L is, for each side, the shortest of `corpora.lengths.ladder` that holds
    the longest row of the whole batch, whatever the `part`, a slice of it or its rows.

    Where documents are passages, one passage drawn anew at each step stands for each: all passages of a
    relevant document count as relevant, and those of another as not (Dai and Callan, 2019, "Deeper
    Text Understanding for IR with Contextual Neural Language Modeling"). `document_rows` are documents.

    Args:
      pairs: the examples.
      query_tokens: in the row order of `pairs.query_ids`.
      document_tokens: in the row order of the corpus; a PassageTable if documents are passages.
      query_length: tokens a query is cut to; `document_length` likewise.
      negatives: int32 [queries, M], mined documents of each query, -1 beyond.
      negatives_per_query: H; drawn from `negatives` anew at each step by (seed, step, example).
      teacher: its scores of the positives and the mined negatives.
      targets: float32 [queries, D], a vector that each query's is to be like.
      groups: int32 [examples], the group of each.
      margin_bins: draws negatives evenly over so many bins of the teacher's scores, see corpora.margin_bins;
        0 for all alike.
      seed: of what is drawn.

    Raises:
      ValueError: negatives are asked for and not given, or more than the table lists.
    """
    if negatives_per_query and negatives is None:
        raise ValueError(f"negatives_per_query is {negatives_per_query}, but no table of negatives is given")
    if negatives_per_query and negatives_per_query > negatives.shape[1]:
        raise ValueError(
            f"negatives_per_query is {negatives_per_query}, but the table lists {negatives.shape[1]} a query"
        )
    if margin_bins and (teacher is None or not negatives_per_query):
        raise ValueError(
            f"margin_bins is {margin_bins}; allowed with negatives and a teacher: 0 or more; else 0"
        )
    if teacher is not None:
        _check_teacher(teacher, pairs, negatives)
    ladders = {"query": ladder(query_length), "document": ladder(document_length)}

    def cut(side: str, table: TokenTable, rows: np.ndarray, part: slice | np.ndarray) -> Batch:
        longest = min(table.longest(rows), ladders[side][-1])
        arrays = table.rectangle(rows[part].reshape(-1), bucket(longest, ladders[side]))
        return {f"{side}_{name}": x.reshape(*rows[part].shape, -1) for name, x in arrays.items()}

    def batch(examples_B: np.ndarray, step: int, part: slice | np.ndarray = slice(None)) -> Batch:
        query_rows_B = pairs.query_rows[examples_B]
        document_rows_BH = pairs.document_rows[examples_B][:, None]
        bits = functools.partial(random_bits, seed, step, examples_B)
        scores = [] if teacher is None else [_of_own(teacher, pairs, query_rows_B, document_rows_BH)]
        if negatives_per_query:
            listed_BM = negatives[query_rows_B]
            chances_BM = chances(teacher.negatives[query_rows_B], margin_bins) if margin_bins else None
            drawn_BH = drawn(listed_BM, negatives_per_query, bits(0, listed_BM.shape[1]), chances_BM)
            document_rows_BH = np.concatenate(
                [document_rows_BH, np.take_along_axis(listed_BM, drawn_BH, axis=1)], axis=1
            )
            if teacher is not None:
                scores.append(np.take_along_axis(teacher.negatives[query_rows_B], drawn_BH, axis=1))
        passages_BH = document_tokens.draw(document_rows_BH, bits(1, document_rows_BH.shape[1]))
        return {
            **cut("query", query_tokens, query_rows_B, part),
            **cut("document", document_tokens, passages_BH, part),
            "document_rows": document_rows_BH[part].astype(np.int32),
            "positives": pairs.positives[query_rows_B[part]],
            **({"teacher": np.concatenate(scores, axis=1)[part]} if scores else {}),
            **({} if targets is None else {"target": targets[query_rows_B[part]].astype(np.float32)}),
            **({} if groups is None else {"group": groups[examples_B[part]].astype(np.int32)}),
        }

    return batch


def drawn(
    listed_BM: np.ndarray, count: int, bits_BM: np.ndarray, chances_BM: np.ndarray | None = None
) -> np.ndarray:
    """Returns the places [B, count] of some of each query's negatives in random order, those of -1 last; with
    chances each stands first as often as they say, and so on among those that are left."""
    if chances_BM is not None:
        # The least of exponential numbers of these rates is each one's as often as its chance.
        with np.errstate(divide="ignore"):
            times_BM = -np.log1p(-(bits_BM / 2.0**64)) / chances_BM
        return np.argsort(np.where(listed_BM < 0, np.inf, times_BM), axis=1, kind="stable")[:, :count]
    bits_BM = np.where(listed_BM < 0, np.uint64(2**64 - 1), bits_BM)
    return np.argsort(bits_BM, axis=1, kind="stable")[:, :count]


def _of_own(
    teacher: Teacher, pairs: Pairs, query_rows_B: np.ndarray, document_rows_B1: np.ndarray
) -> np.ndarray:
    """The teacher's scores [B, 1] of the relevant documents."""
    place_B1 = (pairs.positives[query_rows_B] == document_rows_B1).argmax(axis=1)[:, None]
    return np.take_along_axis(teacher.positives[query_rows_B], place_B1, axis=1)


def _check_teacher(teacher: Teacher, pairs: Pairs, negatives: np.ndarray | None) -> None:
    for side, scores, rows in zip(Teacher._fields, teacher, (pairs.positives, negatives), strict=True):
        if (scores is None) != (rows is None) or np.shape(scores) != np.shape(rows):
            raise ValueError(f"teacher.{side} are {np.shape(scores)}; allowed: one a row, {np.shape(rows)}")


def stream(
    make_batch: Callable[[np.ndarray, int, slice | np.ndarray], Batch],
    order: Order,
    *,
    batch_size: int,
    first_step: int,
    total_steps: int,
    part: slice | np.ndarray = slice(None),
    threads: int = 2,
) -> Iterator[Mapping[str, np.ndarray]]:
    """Yields this process's batches of steps first_step ... total_steps - 1, made ahead by threads.

    `make_batch` is called with the examples of the whole batch, the step, and `part`: which rows of the batch
    this process is to make, such as training.mesh.held_rows gives.
    """
    if first_step >= total_steps:
        return iter(())
    steps = grain.MapDataset.range(first_step, total_steps).map(
        lambda step: make_batch(order.rows(int(step), batch_size), int(step), part)
    )
    return iter(
        steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    )
