"""A table of tokenized texts, kept ragged in two flat arrays and cut to rectangles on demand.

Letters: B rows of a batch, L length, N rows of the table, T tokens in all.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from corpora.tables import Document
from corpora.tokenizer import Tokenizer

# Segment ids: of the text (or a query), of a document's title, and of the first tokens of its text.
TEXT, TITLE, LEAD = 0, 1, 2
_TEXTS_AT_ONCE = 8_192


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


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How the two sides of a collection become tokens: the field `text` of a config.

    Attributes:
      query_length: tokens a query is cut to; `document_length` likewise.
      special_tokens: whether rows are framed by [CLS] and [SEP]: for Transformers, not for bags.
      lead_length: tokens at the start of a document's text that are a segment of their own, such as the
        name in the first line of a function; 0 for none.
    """

    query_length: int
    document_length: int
    special_tokens: bool = False
    lead_length: int = 0

    def __post_init__(self):
        least = 4 if self.special_tokens else 1
        for field, allowed in (("query_length", least), ("document_length", least), ("lead_length", 0)):
            if getattr(self, field) < allowed:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least {allowed}")

    def queries(self, tokenizer: Tokenizer, texts: Iterable[str]) -> TokenTable:
        """Tokenizes queries."""
        pairs = (("", text) for text in texts)
        return tokenize(tokenizer, pairs, max_length=self.query_length, special_tokens=self.special_tokens)

    def documents(self, tokenizer: Tokenizer, documents: Iterable[Document]) -> TokenTable:
        """Tokenizes documents, title first."""
        pairs = ((document.title, document.text) for document in documents)
        return tokenize(
            tokenizer,
            pairs,
            max_length=self.document_length,
            special_tokens=self.special_tokens,
            lead_length=self.lead_length,
        )


def tokenize(
    tokenizer: Tokenizer,
    texts: Iterable[tuple[str, str]],
    *,
    max_length: int,
    special_tokens: bool,
    lead_length: int = 0,
) -> TokenTable:
    """Tokenizes (title, text) pairs; a title comes first and is cut last.

    Args:
      tokenizer: gives the ids.
      texts: pairs; "" for no title.
      max_length: of a row, special tokens included.
      special_tokens: whether rows are `[CLS] title [SEP] text [SEP]` (`[CLS] text [SEP]` without a
        title), as Transformers with a cls pooling want, or only the subwords, as a bag does.
      lead_length: how many tokens at the start of a text are LEAD.

    Raises:
      ValueError: `max_length` leaves no room for a token.
    """
    if max_length < (4 if special_tokens else 1):
        raise ValueError(f"max_length is {max_length}; it must be at least {4 if special_tokens else 1}")
    tokens, segments, lengths = [], [], []
    for batch in _batches(texts):
        titles = tokenizer.encode([title for title, _ in batch], max_length)
        bodies = tokenizer.encode([text for _, text in batch], max_length)
        for title, body in zip(titles, bodies, strict=True):
            ids, kinds = _row(tokenizer, title, body, max_length, special_tokens, lead_length)
            tokens.append(np.asarray(ids, np.int32))
            segments.append(np.asarray(kinds, np.uint8))
            lengths.append(len(ids))
    return TokenTable(
        tokens=np.concatenate(tokens) if tokens else np.zeros(0, np.int32),
        segments=np.concatenate(segments) if segments else np.zeros(0, np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        pad_id=tokenizer.pad_id,
    )


def _row(
    tokenizer: Tokenizer, title: list[int], body: list[int], max_length: int, special: bool, lead_length: int
) -> tuple[list[int], list[int]]:
    """One row's ids and segments."""
    kinds = [LEAD] * min(lead_length, len(body)) + [TEXT] * (len(body) - lead_length)
    if not special:
        ids = [*title, *body]
        return ids[:max_length], ([TITLE] * len(title) + kinds)[:max_length]
    first = [*title, tokenizer.sep_id] if title else []
    first = first[: max_length - 2]
    room = max_length - 2 - len(first)
    ids = [tokenizer.cls_id, *first, *body[:room], tokenizer.sep_id]
    return ids, [TEXT, *[TITLE] * len(first), *kinds[:room], TEXT]


def _batches(texts: Iterable[tuple[str, str]]) -> Iterable[list[tuple[str, str]]]:
    batch = []
    for pair in texts:
        batch.append(pair)
        if len(batch) == _TEXTS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
