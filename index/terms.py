"""Text as term counts, for lexical search: how words are cut, dropped and stemmed.

Dimension letters: Q queries, N documents, V terms.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import scipy.sparse
from tqdm import tqdm

WORDS = r"(?u)\b\w\w+\b"  # two or more letters, digits or underscores
IDENTIFIER_PARTS = r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+"  # HTTPServer2: HTTP, Server, 2
_STOP_WORDS = ("none", "english")
_STEMMERS = ("none", "porter", "english")


@dataclasses.dataclass(frozen=True)
class Analyzer:
    """How text becomes terms: cut into lower-case words, without stop words, stemmed.

    Attributes:
      split_identifiers: cut `parseIsoDate` and `parse_iso_date` into parse, iso and date, and
        `HTTPServer2` into http, server and 2 (ASCII letters and digits; the whole is not kept).
        Otherwise words of two or more characters.
      stop_words: "none" or "english" (bm25s's list of 33).
      stemmer: "none", "porter" (Porter, 1980, "An algorithm for suffix stripping") or "english"
        (its successor in Snowball).

    Example:
      >>> Analyzer(split_identifiers=True)("parseIsoDate of an HTTPServer2")
      ['parse', 'iso', 'date', 'of', 'an', 'http', 'server', '2']
      >>> Analyzer(stop_words="english", stemmer="porter")("The flights of the Concordes")
      ['flight', 'concord']

    Raises:
      ValueError: if an attribute is not one of the allowed values.
    """

    split_identifiers: bool = False
    stop_words: str = "none"
    stemmer: str = "none"

    def __post_init__(self):
        for field, allowed in (("stop_words", _STOP_WORDS), ("stemmer", _STEMMERS)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}; allowed: {', '.join(allowed)}")

    def __call__(self, text: str) -> list[str]:
        """Returns the terms of `text`, in order."""
        terms = map(self.term, self.words(text))
        return [term for term in terms if term is not None]

    def words(self, text: str) -> list[str]:
        """Returns the words of `text` as `term` takes them."""
        # Capitals show where the parts of an identifier begin; other words are lowered at once.
        return _findall(IDENTIFIER_PARTS)(text) if self.split_identifiers else _findall(WORDS)(text.lower())

    def term(self, word: str) -> str | None:
        """Returns the term that a word becomes, None for a stop word."""
        word = word.lower()
        if self.stop_words == "english" and word in _english_stop_words():
            return None
        return word if self.stemmer == "none" else _stemmer(self.stemmer).stemWord(word)


PROSE = Analyzer(stop_words="english", stemmer="porter")
CODE = Analyzer(split_identifiers=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The terms of a collection.

    Attributes:
      columns: by term, its column.
      analyzer: what made the terms, and makes those of queries.
    """

    columns: dict[str, int]
    analyzer: Analyzer

    def counts(self, texts: Sequence[str]) -> scipy.sparse.csr_array:
        """Returns the counts of known terms in each text, float32 CSR [Q, V]; unknown ones are left out."""
        ids = _TermIds(self.analyzer, self.columns, grow=False)
        return _counts(texts, ids, len(self.columns))


@dataclasses.dataclass(frozen=True, eq=False)
class Analyzed:
    """Texts as term counts.

    Attributes:
      text, title: float32 CSR [N, V], occurrences of each term; `title` is empty without titles.
      vocabulary: its V terms.
    """

    text: scipy.sparse.csr_array
    title: scipy.sparse.csr_array
    vocabulary: Vocabulary


def analyze(
    texts: Sequence[str],
    *,
    analyzer: Analyzer = PROSE,
    titles: Sequence[str] | None = None,
    progress: bool = False,
) -> Analyzed:
    """Counts the terms of texts, and of their titles if given.

    Args:
      texts: N documents, 1 or more; they may be empty strings.
      analyzer: how text becomes terms.
      titles: N titles, kept apart so that they may weigh more or less than the text.
      progress: show a progress bar.

    Raises:
      ValueError: if there are no texts, or not as many titles as texts.
    """
    check_texts("texts", texts)
    if not texts:
        raise ValueError("texts is empty; at least one document is needed")
    if titles is not None:
        check_texts("titles", titles)
        if len(titles) != len(texts):
            raise ValueError(f"titles has {len(titles)} entries for {len(texts)} texts")
    ids = _TermIds(analyzer, {}, grow=True)
    titles = [""] * len(texts) if titles is None else titles
    parts = [_counts(with_progress(texts, "counting terms", progress), ids), _counts(titles, ids)]
    for part in parts:
        part.resize((part.shape[0], len(ids.vocabulary)))  # the titles may have brought more terms
    return Analyzed(*parts, Vocabulary(ids.vocabulary, analyzer))


class _TermIds(dict):
    """By word, the column of its term; each distinct word analyzed once. -1: no term, or an unknown one."""

    def __init__(self, analyzer: Analyzer, vocabulary: dict[str, int], *, grow: bool):
        super().__init__()
        self.analyzer, self.vocabulary, self.grow = analyzer, vocabulary, grow

    def __missing__(self, word: str) -> int:
        term = self.analyzer.term(word)
        if term is None:
            found = -1
        elif self.grow:
            found = self.vocabulary.setdefault(term, len(self.vocabulary))
        else:
            found = self.vocabulary.get(term, -1)
        self[word] = found
        return found


def _counts(texts: Iterable[str], ids: _TermIds, columns: int | None = None) -> scipy.sparse.csr_array:
    """Occurrences of each term in each text."""
    flat, ends = [], [0]
    for text in texts:
        flat.extend([term for word in ids.analyzer.words(text) if (term := ids[word]) >= 0])
        ends.append(len(flat))
    columns = len(ids.vocabulary) if columns is None else columns
    counts = scipy.sparse.csr_array(
        (np.ones(len(flat), np.float32), np.array(flat, np.int32), np.array(ends, np.int64)),
        shape=(len(ends) - 1, columns),
    )
    counts.sum_duplicates()
    return counts


def check_texts(name: str, texts: Sequence[str]) -> None:
    """Raises ValueError for one string where a sequence of them is meant."""
    if isinstance(texts, str):
        raise ValueError(f"{name} is one string, {texts[:40]!r}; a sequence of them is needed")


def with_progress(items: Sequence, what: str, shown: bool) -> Iterable:
    """Yields the items, with a progress bar if it is to be shown."""
    return tqdm(items, desc=what, leave=False, dynamic_ncols=True) if shown else items


@functools.cache
def _findall(pattern: str) -> Callable[[str], list[str]]:
    return re.compile(pattern).findall


@functools.cache
def _english_stop_words() -> frozenset[str]:
    return frozenset(import_bm25s().stopwords.STOPWORDS_EN)


@functools.cache
def _stemmer(name: str):
    import Stemmer

    return Stemmer.Stemmer(name)


def import_bm25s():
    """Returns the module bm25s."""
    # Importing bm25s starts jax's backends, which must not happen before jax.distributed.initialize.
    import bm25s.scoring
    import bm25s.stopwords

    return bm25s
