"""A table of tokenized texts, kept ragged in two flat arrays and cut to rectangles on demand.

Letters: B rows of a batch, L length, N rows of the table, T tokens in all.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from corpora.tables import Document
from corpora.templates import Template
from corpora.tokenizer import Frame, Tokenizer

# Segment ids: of the text (or a query), of a document's title, and of the first tokens of its text.
TEXT, TITLE, LEAD = 0, 1, 2
_TEXTS_AT_ONCE = 8_192
_WHOLE = 2**31 - 1  # tokens: a text is not cut


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTable:
    """Tokens of N texts: row n is `tokens[offsets[n] : offsets[n + 1]]`.

    Attributes:
      tokens: int32 [T].
      segments: uint8 [T]; TEXT, TITLE or LEAD.
      offsets: int64 [N + 1].
      pad_id: the id that fills a rectangle.
    """

    tokens: np.ndarray
    segments: np.ndarray
    offsets: np.ndarray
    pad_id: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def rectangle(self, rows_B: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns `tokens`, `mask` and `segments`, each int32 [B, length]; a row of -1 is all padding."""
        rows_B = np.asarray(rows_B)
        starts_B, ends_B = np.zeros(len(rows_B), np.int64), np.zeros(len(rows_B), np.int64)
        present_B = rows_B >= 0
        starts_B[present_B] = self.offsets[rows_B[present_B]]
        ends_B[present_B] = self.offsets[rows_B[present_B] + 1]
        where_BL = starts_B[:, None] + np.arange(length)
        mask_BL = where_BL < ends_B[:, None]
        tokens_BL = np.full(mask_BL.shape, self.pad_id, np.int32)
        segments_BL = np.full(mask_BL.shape, TEXT, np.int32)
        tokens_BL[mask_BL] = self.tokens[where_BL[mask_BL]]
        segments_BL[mask_BL] = self.segments[where_BL[mask_BL]]
        return {"tokens": tokens_BL, "mask": mask_BL.astype(np.int32), "segments": segments_BL}

    def longest(self, rows: np.ndarray) -> int:
        """Returns the tokens of the longest of some rows, -1 for none; 0 where there is no row."""
        rows = np.asarray(rows)[np.asarray(rows) >= 0]
        return int((self.offsets[rows + 1] - self.offsets[rows]).max(initial=0))

    def text_lengths(self) -> np.ndarray:
        """Returns int64, the tokens of each text: here a text is a row."""
        return np.diff(self.offsets)

    def draw(self, texts: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Returns the row that stands for each text, -1 where there is none: here a text is a row.

        Args:
          texts: integers of any shape, -1 for none.
          bits: uint64, random numbers of the same shape that choose among the rows of a text.
        """
        del bits
        return texts


@dataclasses.dataclass(frozen=True, eq=False)
class PassageTable(TokenTable):
    """Tokens of N passages, those of a document one after the other and in the order of the documents.

    Attributes:
      document_of_row: int32 [N], the document of each passage; every document has one at least.
    """

    document_of_row: np.ndarray

    @functools.cached_property
    def first_row(self) -> np.ndarray:
        """int64 [documents + 1]: those of document d are rows first_row[d] to first_row[d + 1] - 1."""
        documents = int(self.document_of_row[-1]) + 1 if len(self) else 0
        return np.searchsorted(self.document_of_row, np.arange(documents + 1))

    def text_lengths(self) -> np.ndarray:
        """Returns int64 [documents], the tokens of each document's longest passage."""
        lengths_N = np.diff(self.offsets)
        return np.maximum.reduceat(lengths_N, self.first_row[:-1]) if len(self) else lengths_N

    def draw(self, texts: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Returns a passage of each document, all alike likely."""
        first = self.first_row[texts]
        count = self.first_row[np.asarray(texts) + 1] - first
        there = np.asarray(texts) >= 0
        # Of a missing document the count means nothing, and must not be zero.
        chosen = (bits % np.where(there, count, 1).astype(np.uint64)).astype(np.int64)
        return np.where(there, first + chosen, -1)


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How the two sides of a collection become tokens: the field `text` of a config.

    Attributes:
      query_length: tokens a query is cut to; `document_length` likewise.
      special_tokens: whether rows stand in the tokenizer's frame, such as [CLS] and [SEP]: for Transformers,
        not for bags.
      lead_length: tokens at the start of a document's text that are a segment of their own, such as the
        name in the first line of a function; 0 for none.
      query_template: the words around a query, such as "query: {text}" (Wang et al., 2022, "Text Embeddings
        by Weakly-Supervised Contrastive Pre-training"); "" for the query alone.
      document_template: likewise, with `{title}` too: "passage: {title} {text}"; "" for the title and the
        text, with a [SEP] between them where there are special tokens and the tokenizer has one.
      passage_stride: 0 to cut a document at `document_length`. Otherwise a longer one becomes passages of
        `document_length` tokens that begin every `passage_stride` tokens of its text, each with the
        title, and is scored by its best (see index.passages). A title takes half of a passage at
        most, and where it leaves less than `passage_stride` tokens they begin the closer.

    Raises:
      ValueError: a length or stride out of range, or a template with other fields.
    """

    query_length: int
    document_length: int
    special_tokens: bool = False
    lead_length: int = 0
    query_template: str = ""
    document_template: str = ""
    passage_stride: int = 0

    def __post_init__(self):
        least = 4 if self.special_tokens else 1
        for field, allowed in (("query_length", least), ("document_length", least), ("lead_length", 0)):
            if getattr(self, field) < allowed:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least {allowed}")
        if not 0 <= self.passage_stride <= self.document_length:
            raise ValueError(
                f"passage_stride is {self.passage_stride}; allowed: 0 to {self.document_length}, "
                "the document_length"
            )
        self._template("query_template", "text")
        self._template("document_template", "title", "text")

    def _template(self, name: str, *fields: str) -> Template | None:
        return Template(name, getattr(self, name), fields) if getattr(self, name) else None

    def queries(self, tokenizer: Tokenizer, texts: Iterable[str]) -> TokenTable:
        """Tokenizes queries."""
        pairs = (("", text) for text in texts)
        return tokenize(
            tokenizer,
            pairs,
            max_length=self.query_length,
            special_tokens=self.special_tokens,
            template=self._template("query_template", "text"),
        )

    def passages(self, tokenizer: Tokenizer, documents: Iterable[Document]) -> PassageTable:
        """Tokenizes documents, title first; one passage each unless there is a `passage_stride`."""
        pairs = ((document.title, document.text) for document in documents)
        return tokenize(
            tokenizer,
            pairs,
            max_length=self.document_length,
            special_tokens=self.special_tokens,
            lead_length=self.lead_length,
            template=self._template("document_template", "title", "text"),
            stride=self.passage_stride,
        )


def tokenize(
    tokenizer: Tokenizer,
    texts: Iterable[tuple[str, str]],
    *,
    max_length: int,
    special_tokens: bool,
    lead_length: int = 0,
    template: Template | None = None,
    stride: int = 0,
) -> PassageTable:
    """Tokenizes (title, text) pairs; what comes before the text, such as a title, is cut last.

    Args:
      tokenizer: gives the ids.
      texts: pairs; "" for no title.
      max_length: of a row, special tokens included.
      special_tokens: whether rows are `[CLS] title [SEP] text [SEP]` (`[CLS] text [SEP]` without a
        title), or what else the tokenizer's frame is, as Transformers want, or only the subwords, as a bag
        does.
      lead_length: how many tokens at the start of a text are LEAD.
      template: the words around title and text, which are then one string, with no [SEP] inside; they
        are TEXT. None for none.
      stride: between passages, see `TextSettings`; 0 for one row a text.

    Raises:
      ValueError: `max_length` leaves no room for a token.
    """
    if max_length < (4 if special_tokens else 1):
        raise ValueError(f"max_length is {max_length}; it must be at least {4 if special_tokens else 1}")
    frame = tokenizer.frame if special_tokens else Frame([], [])
    room = max_length - frame.size
    limit = _WHOLE if stride or (template and not template.text_is_last) else max_length
    first, last = ((ids, [TEXT] * len(ids)) for ids in frame)
    tokens, segments, lengths, counts = [], [], [], []
    for batch in _batches(texts):
        if template:
            encoded = _filled(tokenizer, batch, template, limit)
        else:
            encoded = _title_and_text(tokenizer, batch, limit, special_tokens)
        for parts in encoded:
            rows = _rows(parts, room, lead_length, stride)
            counts.append(len(rows))
            for ids, kinds in rows:
                tokens.append(np.asarray([*first[0], *ids, *last[0]], np.int32))
                segments.append(np.asarray([*first[1], *kinds, *last[1]], np.uint8))
                lengths.append(len(tokens[-1]))
    return PassageTable(
        tokens=np.concatenate(tokens) if tokens else np.zeros(0, np.int32),
        segments=np.concatenate(segments) if segments else np.zeros(0, np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        pad_id=tokenizer.pad_id,
        document_of_row=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
    )


class _Parts(NamedTuple):
    """Ids of one text, and of what stands before and after it with their segments."""

    before: list[int]
    before_kinds: list[int]
    text: list[int]
    after: list[int]
    after_kinds: list[int]


def _title_and_text(
    tokenizer: Tokenizer, batch: list[tuple[str, str]], limit: int, special_tokens: bool
) -> Iterator[_Parts]:
    titles = tokenizer.encode([title for title, _ in batch], limit)
    for title, text in zip(titles, tokenizer.encode([text for _, text in batch], limit), strict=True):
        before = [*title, *tokenizer.separator] if title and special_tokens else title
        yield _Parts(before, [TITLE] * len(before), text, [], [])


def _filled(
    tokenizer: Tokenizer, batch: list[tuple[str, str]], template: Template, limit: int
) -> Iterator[_Parts]:
    """Tokenized as one string: what stands at a seam may then depend on both sides, as " how" in GPT-2."""
    rendered = [template.render(title, text) for title, text in batch]
    encoded = tokenizer.encode_with_ends([r.words for r in rendered], limit)
    for (_, title, text), (ids, ends) in zip(rendered, encoded, strict=True):
        ends = np.asarray(ends)
        kinds = np.where((ends > title[0]) & (ends <= title[1]), TITLE, TEXT).tolist()
        start, end = np.searchsorted(ends, text, side="right").tolist()
        yield _Parts(ids[:start], kinds[:start], ids[start:end], ids[end:], kinds[end:])


def _rows(parts: _Parts, room: int, lead_length: int, stride: int) -> list[tuple[list[int], list[int]]]:
    """The ids and segments of a text's rows, without special tokens."""
    text, lead = parts.text, min(lead_length, len(parts.text))
    kinds = [LEAD] * lead + [TEXT] * (len(text) - lead)
    split = stride and len(parts.before) + len(text) + len(parts.after) > room
    around = room // 2 if split else room
    before = parts.before[:around]
    after = parts.after[: around - len(before)]
    size = room - len(before) - len(after)
    stride = min(stride, size)
    starts = range(0, max(len(text) - size, 0) + stride, stride) if split else [0]
    return [
        (
            [*before, *text[start : start + size], *after],
            [
                *parts.before_kinds[: len(before)],
                *kinds[start : start + size],
                *parts.after_kinds[: len(after)],
            ],
        )
        for start in starts
    ]


def _batches(texts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    texts = iter(texts)
    while batch := list(itertools.islice(texts, _TEXTS_AT_ONCE)):
        yield batch
