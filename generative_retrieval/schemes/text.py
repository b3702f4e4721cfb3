"""Texts as ids: titles (De Cao et al., 2021, "Autoregressive Entity Retrieval"), URLs (Ziems et al., 2023,
"Large Language Models are Built-in Autoregressive Search Engines") or first tokens.

Symbols are the tokens of the experiment's tokenizer, each by one higher, since 0 is END. Behind the text
stands the document's number among those of the same text, see `suffix`, whose symbols come after those of the
tokens. It closes the id, so that one title may begin with another.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from generative_retrieval.docids import NONE, Docids, DocidsError, Documents
from generative_retrieval.schemes import checks, suffix

_TEXTS_AT_ONCE = 8_192
_CHARACTERS = 12  # a token, of the beginning of a text that is tokenized first


@dataclasses.dataclass(frozen=True)
class _Texts:
    """What the schemes of this file share.

    Attributes:
      length: tokens that texts are cut to; equal ones are then told apart by their numbers.
      numbers: documents with one text whose numbers are one symbol; those behind them take three or more.
    """

    length: int
    numbers: int = 100

    needs_vectors: ClassVar[bool] = False
    needs_tokenizer: ClassVar[bool] = True
    scheme: ClassVar[str]

    def __post_init__(self):
        checks.check_least("length", self.length, 1)
        checks.check_least("numbers", self.numbers, 1)

    def texts(self, documents: Documents) -> Sequence[str]:
        """Returns the text that each document has its id from."""
        raise NotImplementedError

    def assign(self, documents: Documents, seed: int) -> Docids:
        """Gives ids; nothing is drawn. Raises DocidsError where there is no tokenizer."""
        codes_NT = self._codes(documents)
        return self._docids(codes_NT, documents.tokenizer.vocab_size)

    def extend(self, docids: Docids, documents: Documents, seed: int) -> Docids:
        """Gives more ids. Raises DocidsError for ids of another scheme or with another tokenizer."""
        new_NT = self._codes(documents)
        words = documents.tokenizer.vocab_size
        checks.check_own(docids, self.scheme, self._size(words))
        codes_NT = np.where(docids.symbols_NT <= words, docids.symbols_NT, NONE)
        return self._docids(suffix.stacked(codes_NT, new_NT), words)

    def _size(self, words: int) -> int:
        return 1 + words + self.numbers + 1  # END, tokens, digits, MORE

    def _docids(self, codes_NT: np.ndarray, words: int) -> Docids:
        symbols_NT, collisions = suffix.with_suffix(codes_NT, self.numbers, first=1 + words)
        return Docids(symbols_NT, self._size(words), self.scheme, collisions)

    def _codes(self, documents: Documents) -> np.ndarray:
        if documents.tokenizer is None:
            raise DocidsError(f"the scheme {self.scheme!r} needs a tokenizer; there is none")
        texts = self.texts(documents)
        codes_NT = np.full((len(texts), self.length), NONE, np.int32)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            tokens = _encode(documents.tokenizer, texts[start : start + _TEXTS_AT_ONCE], self.length)
            lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
            shown = np.arange(self.length)[None, :] < lengths[:, None]
            flat = np.fromiter(itertools.chain.from_iterable(tokens), np.int32, int(lengths.sum()))
            codes_NT[start : start + _TEXTS_AT_ONCE][shown] = flat + 1
        return codes_NT


def _encode(tokenizer: Any, texts: Sequence[str], length: int) -> list[list[int]]:
    """Returns the first tokens of each text. Long texts are read whole only where their beginnings, up to a
    blank, have too few: a tokenizer cuts tokens only when it has made them all."""
    room = _CHARACTERS * length
    beginnings = [text if len(text) <= room else text[:room].rpartition(" ")[0] for text in texts]
    tokens = tokenizer.encode(beginnings, length)
    short = [row for row, ids in enumerate(tokens) if len(ids) < length and len(texts[row]) > room]
    for row, ids in zip(short, tokenizer.encode([texts[row] for row in short], length), strict=True):
        tokens[row] = ids
    return tokens


@dataclasses.dataclass(frozen=True)
class Titles(_Texts):
    """Titles; a document without one has only its number."""

    scheme: ClassVar[str] = "titles"

    def texts(self, documents: Documents) -> Sequence[str]:
        return documents.titles


@dataclasses.dataclass(frozen=True)
class Urls(_Texts):
    """The collection's own ids of its documents, which are URLs in some."""

    scheme: ClassVar[str] = "urls"

    def texts(self, documents: Documents) -> Sequence[str]:
        return documents.doc_ids


@dataclasses.dataclass(frozen=True)
class FirstTokens(_Texts):
    """The first tokens of texts, without titles."""

    scheme: ClassVar[str] = "first tokens"

    def texts(self, documents: Documents) -> Sequence[str]:
        return documents.texts
