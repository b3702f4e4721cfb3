"""Query and document as one row of tokens, and training batches of such rows.

Batches are a function of (seed, step) and of tables, as in `corpora.batches`. Letters: B queries of a batch,
H listed negatives of each, L length, M mined negatives, N rows.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from corpora.batches import Batch, Pairs, drawn
from corpora.lengths import bucket, ladder
from corpora.random_bits import random_bits
from corpora.tables import Document
from corpora.tokenizer import Tokenizer
from corpora.tokens import TokenTable, tokenize

# Segments: of the query's tokens and the document's, and of those that the other side has too.
QUERY, DOCUMENT, QUERY_MATCH, DOCUMENT_MATCH = range(4)


@dataclasses.dataclass(frozen=True)
class PairSettings:
    """How a query and a document become one row: the field `text` of a config.

        [CLS] query [SEP] title text [SEP]

    or what else the tokenizer's frame is; Nogueira and Cho (2019), "Passage Re-ranking with BERT".

    Attributes:
      query_length: tokens a query is cut to, [CLS] and [SEP] included.
      document_length: tokens of title and text together, the last [SEP] included.
      mark_matches: whether tokens that both sides have are segments of their own, QUERY_MATCH and
        DOCUMENT_MATCH, so that a model finds exact matches without having learned every token. Boualili et
        al. (2020), "MarkedBERT", put signs around such words instead.

    Raises:
      ValueError: a length leaves no room for a token.
    """

    query_length: int
    document_length: int
    mark_matches: bool = False

    def __post_init__(self):
        for field in ("query_length", "document_length"):
            if getattr(self, field) < 4:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 4")

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return self.query_length + self.document_length

    def queries(self, tokenizer: Tokenizer, texts: Iterable[str]) -> TokenTable:
        """Tokenizes queries, in the frame."""
        pairs = (("", text) for text in texts)
        return tokenize(tokenizer, pairs, max_length=self.query_length, special_tokens=True)

    def documents(self, tokenizer: Tokenizer, documents: Iterable[Document]) -> TokenTable:
        """Tokenizes documents, title first, without the frame."""
        pairs = ((document.title, document.text) for document in documents)
        room = self.document_length - len(tokenizer.frame.last)
        return tokenize(tokenizer, pairs, max_length=room, special_tokens=False)

    def table(
        self, tokenizer: Tokenizer, queries: Iterable[str], documents: Iterable[Document]
    ) -> "PairTable":
        """Returns the rows of these queries with these documents."""
        return PairTable(
            self.queries(tokenizer, queries),
            self.documents(tokenizer, documents),
            tokenizer.frame.last,
            self.mark_matches,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class PairTable:
    """Every query with every document, as rows that are put together when they are asked for.

    Attributes:
      queries: in the frame, such as [CLS] query [SEP].
      documents: without one.
      last: ids that end a row.
      mark_matches: see `PairSettings`.
    """

    queries: TokenTable
    documents: TokenTable
    last: Sequence[int]
    mark_matches: bool = False

    def lengths(self, query_rows: np.ndarray, document_rows: np.ndarray) -> np.ndarray:
        """Returns int64, the tokens of each pair, 0 where the document is -1; rows of any one shape."""
        size = lambda table, rows: table.offsets[rows + 1] - table.offsets[rows]
        both = size(self.queries, query_rows) + size(self.documents, np.maximum(document_rows, 0))
        return np.where(document_rows >= 0, both + len(self.last), 0)

    def rectangle(
        self, query_rows_N: np.ndarray, document_rows_N: np.ndarray, length: int
    ) -> dict[str, np.ndarray]:
        """Returns `tokens`, `mask` and `segments`, each int32 [N, length]; all padding where a document is
        -1."""
        there_N = document_rows_N >= 0
        query_rows_N = np.where(there_N, query_rows_N, -1)
        sides = [
            (self.queries, query_rows_N, QUERY),
            (self.documents, np.asarray(document_rows_N), DOCUMENT),
        ]
        cut = [table.rectangle(rows_N, max(table.longest(rows_N), 1)) for table, rows_N, _ in sides]
        ends = np.where(there_N[:, None], np.asarray(self.last, np.int32)[None, :], 0)
        tokens = np.concatenate([*(side["tokens"] for side in cut), ends], axis=1)
        mask = np.concatenate(
            [*(side["mask"] for side in cut), np.broadcast_to(there_N[:, None], ends.shape)], axis=1
        ).astype(bool)
        kinds = [np.full(side["tokens"].shape, kind) for side, (_, _, kind) in zip(cut, sides, strict=True)]
        if self.mark_matches:
            query, document = cut
            equal_NQD = query["tokens"][:, :, None] == document["tokens"][:, None, :]
            equal_NQD &= (query["mask"][:, :, None] & document["mask"][:, None, :]).astype(bool)
            kinds = [
                np.where(equal_NQD.any(2), QUERY_MATCH, kinds[0]),
                np.where(equal_NQD.any(1), DOCUMENT_MATCH, kinds[1]),
            ]
        segments = np.concatenate([*kinds, np.full(ends.shape, DOCUMENT)], axis=1)
        # What is there of each part moves together, in its order.
        order = np.argsort(~mask, axis=1, kind="stable")
        found = {}
        for name, x, fill in (
            ("tokens", tokens, self.queries.pad_id),
            ("mask", mask, 0),
            ("segments", segments, QUERY),
        ):
            moved = np.take_along_axis(np.where(mask, x, fill), order, axis=1)[:, :length]
            padded = np.pad(moved, ((0, 0), (0, length - moved.shape[1])), constant_values=fill)
            found[name] = padded.astype(np.int32)
        return found


def batches(
    pairs: Pairs,
    table: PairTable,
    *,
    length: int,
    negatives: np.ndarray,
    negatives_per_query: int,
    seed: int = 0,
) -> Callable[..., Batch]:
    """Returns the function `(examples [B] of the whole batch, step, part=all) -> batch of that part`.

    The batch has, for B examples and 1 + H documents each (the relevant one first): `tokens`, `mask` and
    `segments` [B, 1 + H, L] and `document_rows` [B, 1 + H] (-1: no document there), all int32. L is the
    shortest of `corpora.lengths.ladder` that holds the longest row of the whole batch, whatever the `part`.

    Args:
      pairs: the examples.
      table: queries in the row order of `pairs.query_ids`, documents in that of the corpus.
      length: tokens of the longest row.
      negatives: int32 [queries, M], mined documents of each query, -1 beyond.
      negatives_per_query: H; drawn from `negatives` anew at each step by (seed, step, example).
      seed: of what is drawn.

    Raises:
      ValueError: more negatives are asked for than the table lists, or less than one.
    """
    if not 1 <= negatives_per_query <= negatives.shape[1]:
        raise ValueError(
            f"negatives_per_query is {negatives_per_query}; allowed: 1 to {negatives.shape[1]}, which the "
            "table lists a query"
        )
    lengths = ladder(length)

    def batch(examples_B: np.ndarray, step: int, part: slice | np.ndarray = slice(None)) -> Batch:
        query_rows_B = pairs.query_rows[examples_B]
        listed_BM = negatives[query_rows_B]
        drawn_BH = drawn(
            listed_BM, negatives_per_query, random_bits(seed, step, examples_B, 0, listed_BM.shape[1])
        )
        own_B1 = pairs.document_rows[examples_B][:, None]
        document_rows_BH = np.concatenate([own_B1, np.take_along_axis(listed_BM, drawn_BH, axis=1)], axis=1)
        query_rows_BH = np.broadcast_to(query_rows_B[:, None], document_rows_BH.shape)
        longest = int(table.lengths(query_rows_BH, document_rows_BH).max())
        rows = [x[part].reshape(-1) for x in (query_rows_BH, document_rows_BH)]
        arrays = table.rectangle(*rows, bucket(longest, lengths))
        shape = document_rows_BH[part].shape
        return {
            **{name: x.reshape(*shape, -1) for name, x in arrays.items()},
            "document_rows": document_rows_BH[part].astype(np.int32),
        }

    return batch
