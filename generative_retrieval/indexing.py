"""What is mapped to docids in training: a mixture of documents, in pieces, and of queries.

    indexing=dict(
        first_tokens=dict(name="generative_retrieval.indexing.first_tokens"),
        queries=dict(name="generative_retrieval.indexing.queries"),
    )

Tay et al. (2022), "Transformer Memory as a Differentiable Search Index", index documents by their first
tokens and train on queries besides. Zhuang et al. (2022), "Bridging the Gap Between Indexing and Retrieval
for Differentiable Search Index with Query Generation", and Pradeep et al. (2023), "How Does Generative
Retrieval Scale to Millions of Passages?", index generated queries.

Letters: B rows of a batch, S length of a text, N rows of a table, T symbols of a docid.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from corpora import tokens
from corpora.lengths import bucket, ladder
from corpora.random_bits import random_bits
from corpora.tables import DataError, Document
from corpora.tokenizer import Tokenizer
from generative_retrieval import exhaustive

Batch = dict[str, np.ndarray]
_SPANS = 2  # tells these random numbers from those of negatives
_WHOLE = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """What examples are made of.

    Attributes:
      documents: of the collection, in the order of their rows.
      rows: int32, the documents that are indexed, ascending.
      doc_ids: of all documents.
      queries: texts of training queries, and
      query_documents: int32, the document that each is for; a query with several stands here as often.
      tokenizer: of texts.
      length: tokens that a text is cut to.
    """

    documents: Sequence[Document]
    rows: np.ndarray
    doc_ids: Sequence[str]
    queries: Sequence[str]
    query_documents: np.ndarray
    tokenizer: Tokenizer
    length: int

    def titles_and_texts(self) -> Iterable[tuple[str, str]]:
        """Yields those of the documents that are indexed."""
        at_once = 10_000
        for start in range(0, len(self.rows), at_once):
            for row in self.rows[start : start + at_once]:
                document = self.documents[int(row)]
                yield document.title, document.text


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Texts and the documents that they stand for.

    Attributes:
      tokens: a row for each example.
      document_rows: int32 [N].
      span: tokens of a row that are seen at a step, from a place that is drawn anew each time; 0 for its
        first ones.
      texts: of the rows where they are queries, for a teacher to read; None where they are of documents.
    """

    tokens: tokens.TokenTable
    document_rows: np.ndarray
    span: int = 0
    texts: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.document_rows)


def first_tokens(source: Source) -> Examples:
    """The beginning of each document, title first ("direct indexing" of Tay et al., 2022)."""
    return Examples(_tokenized(source, source.titles_and_texts(), source.length), source.rows)


def random_spans(source: Source, *, span: int) -> Examples:
    """A run of `span` tokens of each document, drawn anew each time it is seen.

    Raises:
      ValueError: span is below 1 or above the length of texts.
    """
    if not 1 <= span <= source.length:
        raise ValueError(f"span is {span}; allowed: 1 to {source.length}, the length of texts")
    return Examples(_tokenized(source, source.titles_and_texts(), _WHOLE), source.rows, span)


def chunks(source: Source) -> Examples:
    """All of each document, cut into chunks that each begin with the title."""
    room = source.length
    table = _tokenized(source, source.titles_and_texts(), room, stride=room)
    return Examples(table, source.rows[table.document_of_row])


def queries(source: Source) -> Examples:
    """The training queries."""
    there = np.isin(source.query_documents, source.rows)
    texts = [text for text, is_in in zip(source.queries, there, strict=True) if is_in]
    table = _tokenized(source, [("", text) for text in texts], source.length)
    return Examples(table, source.query_documents[there], texts=texts)


def generated(source: Source, *, file: str) -> Examples:
    """Queries of a file, such as `experiments.generate_queries` writes.

    Args:
      file: JSON lines with `doc_id` and `text`; those of documents that are not indexed are left out.

    Raises:
      DataError: there is no such file, a line lacks a field, or all lines are of other collections.
    """
    row_of = {source.doc_ids[row]: row for row in source.rows.tolist()}
    texts, rows, known, of_another = [], [], set(source.doc_ids), True
    try:
        with Path(file).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    entry = json.loads(line)
                    doc_id, text = entry["doc_id"], entry["text"]
                    if not (isinstance(doc_id, str) and isinstance(text, str)):
                        raise TypeError
                except (ValueError, KeyError, TypeError):
                    wanted = "no JSON object with doc_id and text, both strings"
                    raise DataError(f"{file}:{number}: {wanted}") from None
                of_another = of_another and doc_id not in known
                if doc_id in row_of:
                    texts.append(text)
                    rows.append(row_of[doc_id])
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    if of_another:
        raise DataError(f"{file} has no query for a document of this collection")
    table = _tokenized(source, [("", text) for text in texts], source.length)
    return Examples(table, np.asarray(rows, np.int32), texts=texts)


def _tokenized(source: Source, texts, length: int, stride: int = 0) -> tokens.PassageTable:
    return tokens.tokenize(
        source.tokenizer, texts, max_length=length, special_tokens=False, stride=min(stride, length)
    )


def batches(
    examples: Sequence[Examples], symbols_NT: np.ndarray, *, length: int, seed: int
) -> Callable[..., Batch]:
    """Returns the function `(examples [B] of the whole batch, step, part=all) -> batch of that part`.

    Examples are numbered through all sources, one after the other. The batch has `tokens`, `mask` and
    `segments` [B, S], `targets` and `target_mask` [B, T] and `documents` [B], all int32. S is the shortest of
    `corpora.lengths.ladder` that holds the longest text of the whole batch.

    Args:
      examples: by source.
      symbols_NT: int32, the docids.
      length: tokens that texts are cut to.
      seed: of what is drawn.
    """
    first = np.cumsum([0, *map(len, examples)])
    rungs = ladder(length)

    def batch(examples_B: np.ndarray, step: int, part: slice | np.ndarray = slice(None)) -> Batch:
        examples_B = np.asarray(examples_B)
        bits_B = random_bits(seed, step, examples_B, _SPANS, 1)[:, 0]
        count = len(examples_B)
        of_B = np.searchsorted(first, examples_B, side="right") - 1
        starts_B, sizes_B = np.zeros(count, np.int64), np.zeros(count, np.int64)
        documents_B = np.zeros(count, np.int32)
        for number in np.unique(of_B):
            held, here = examples[number], of_B == number
            rows = examples_B[here] - first[number]
            starts_B[here], sizes_B[here] = _runs(held, rows, bits_B[here])
            documents_B[here] = held.document_rows[rows]
        sizes_B = np.minimum(sizes_B, length)
        where_BS = np.arange(bucket(int(sizes_B.max()), rungs))[None]
        mask_BS, where_BS = where_BS < sizes_B[:, None], starts_B[:, None] + where_BS
        tokens_BS = np.full(where_BS.shape, examples[0].tokens.pad_id, np.int32)
        segments_BS = np.full(where_BS.shape, tokens.TEXT, np.int32)
        for number in np.unique(of_B):
            shown = mask_BS & (of_B == number)[:, None]
            held = examples[number].tokens
            tokens_BS[shown] = held.tokens[where_BS[shown]]
            segments_BS[shown] = held.segments[where_BS[shown]]
        made = {
            "tokens": tokens_BS,
            "mask": mask_BS.astype(np.int32),
            "segments": segments_BS,
            **exhaustive.targets(symbols_NT[documents_B]),
            "documents": documents_B,
        }
        return {name: array[part] for name, array in made.items()}

    return batch


def _runs(examples: Examples, rows: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the tokens of some rows begin that are seen, and how many there are."""
    starts = examples.tokens.offsets[rows]
    sizes = examples.tokens.offsets[rows + 1] - starts
    if examples.span:
        spare = np.maximum(sizes - examples.span, 0)
        starts = starts + (bits % (spare + 1).astype(np.uint64)).astype(np.int64)
        sizes = np.minimum(sizes, examples.span)
    return starts, sizes
