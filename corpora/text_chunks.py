"""Documents as chunks of a fixed length, for a language model to read from left to right.

A document is its title's tokens, its text's and an end token; chunks are cut from it one after the other and
hold nothing of another document. In a batch every chunk stands behind a begin token, and at each position the
token is to be told from those before it.

Letters: B rows of a batch, L length, N chunks, T tokens in all.
"""

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np

from corpora.tables import Document
from corpora.tokenizer import Tokenizer

_DOCUMENTS_AT_ONCE = 8_192
_WHOLE = 2**31 - 1  # tokens: a text is not cut


@dataclasses.dataclass(frozen=True, eq=False)
class ChunkTable:
    """The tokens of N chunks: chunk n is `tokens[offsets[n] : offsets[n + 1]]`.

    Attributes:
      tokens: int32 [T].
      offsets: int64 [N + 1].
      document_of_chunk: int32 [N], ascending.
      begin_id: what stands before a chunk.
      pad_id: what fills a rectangle.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    document_of_chunk: np.ndarray
    begin_id: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def rectangle(self, chunks_B: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns `tokens`, `targets` and `mask`, each int32 [B, length]; a chunk of -1 is all padding.

        `targets` is the chunk, `tokens` the begin token and the chunk without its last token: what is read
        at a position, and what is to come after it.

        Raises:
          ValueError: a chunk is longer.
        """
        chunks_B = np.asarray(chunks_B)
        starts_B, ends_B = np.zeros(len(chunks_B), np.int64), np.zeros(len(chunks_B), np.int64)
        there_B = chunks_B >= 0
        starts_B[there_B] = self.offsets[chunks_B[there_B]]
        ends_B[there_B] = self.offsets[chunks_B[there_B] + 1]
        longest = int((ends_B - starts_B).max(initial=0))
        if longest > length:
            raise ValueError(f"length is {length}; allowed: at least {longest}, the tokens of a chunk")
        where_BL = starts_B[:, None] + np.arange(length)
        mask_BL = where_BL < ends_B[:, None]
        targets_BL = np.full(mask_BL.shape, self.pad_id, np.int32)
        targets_BL[mask_BL] = self.tokens[where_BL[mask_BL]]
        tokens_BL = np.roll(targets_BL, 1, axis=1)
        tokens_BL[:, 0] = self.begin_id
        tokens_BL[~mask_BL] = self.pad_id
        return {"tokens": tokens_BL, "targets": targets_BL, "mask": mask_BL.astype(np.int32)}


def cut(tokenizer: Tokenizer, documents: Iterable[Document], length: int) -> ChunkTable:
    """Tokenizes documents and cuts them into chunks of `length` tokens; the last of a document has the rest.

    Begin and end are the tokenizer's [CLS] and [SEP]. A document of nothing has no chunk.

    Raises:
      ValueError: `length` is below 2.
    """
    if length < 2:
        raise ValueError(f"length is {length}; it must be at least 2")
    documents = iter(documents)
    parts, sizes = [], []
    while some := list(itertools.islice(documents, _DOCUMENTS_AT_ONCE)):
        titles = tokenizer.encode([document.title for document in some], _WHOLE)
        texts = tokenizer.encode([document.text for document in some], _WHOLE)
        for title, text in zip(titles, texts, strict=True):
            ids = [*title, *text, tokenizer.sep_id] if title or text else []
            parts.append(np.asarray(ids, np.int32))
            sizes.append(len(ids))
    sizes = np.asarray(sizes, np.int64)
    chunks = -(-sizes // length)  # of each document
    document_of_chunk = np.repeat(np.arange(len(sizes), dtype=np.int32), chunks)
    number = np.arange(len(document_of_chunk)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    lengths = np.minimum(length, sizes[document_of_chunk] - number * length)
    return ChunkTable(
        tokens=np.concatenate(parts) if parts else np.zeros(0, np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        document_of_chunk=document_of_chunk,
        begin_id=tokenizer.cls_id,
        pad_id=tokenizer.pad_id,
    )
