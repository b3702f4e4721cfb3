"""Subword tokenizers: trained on a collection's training split, or loaded from a file.

Everything is done by the `tokenizers` library and saved as one `tokenizer.json`, the splitting of
identifiers included: `parseIsoDate`, `parse_iso_date` and `HTTPServer2` become `parse iso date`,
`parse iso date` and `http server 2` before subwords are looked up.
"""

import collections
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from corpora.tables import DataError

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENIZER_FILE = "tokenizer.json"  # of a run directory
PADS = (PAD, "<pad>")
_PROBES = ("a", "1", ".", "\u4e00")  # one of which every tokenizer knows
_INSIDE = "##"  # how a subword inside a word begins
_ALPHABET_SIZE = 500
_IDENTIFIER_BOUNDARY = (
    r"(?<=[a-z0-9])(?=[A-Z])"  # parse|Iso
    r"|(?<=[A-Z])(?=[A-Z][a-z])"  # HTTP|Server
    r"|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])"  # server|2
    r"|_"
)


class Frame(NamedTuple):
    """The special tokens that a text is put between: ids of those before it, and of those after it."""

    first: list[int]
    last: list[int]

    @property
    def size(self) -> int:
        return len(self.first) + len(self.last)


class Tokenizer:
    """Text to subword ids.

    Attributes:
      pad_id: what fills a rectangle, under the mask: that of the padding that `tokenizer.json` describes, of
        [PAD] or <pad>; 0 where there is none.
      frame: what the post-processor of `tokenizer.json` puts around a text; where there is none, [CLS] and
        [SEP], if the vocabulary has them.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend, self._padding = backend, backend.padding
        backend.no_padding()
        known = (backend.token_to_id(token) for token in PADS)
        default = next((pad_id for pad_id in known if pad_id is not None), 0)
        self.pad_id: int = self._padding["pad_id"] if self._padding else default
        self.frame = _frame(backend)

    @property
    def cls_id(self) -> int:
        """The id of [CLS]. Raises DataError where there is none."""
        return self._special(CLS)

    @property
    def sep_id(self) -> int:
        """The id of [SEP]. Raises DataError where there is none."""
        return self._special(SEP)

    @property
    def separator(self) -> list[int]:
        """What stands between a title and its text: [SEP], or nothing where there is none."""
        found = self._backend.token_to_id(SEP)
        return [] if found is None else [found]

    def _special(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        if found is None:
            raise DataError(f"the tokenizer has no token {token}, which is needed here")
        return found

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Returns the ids of each text, cut to `max_length`, without special tokens."""
        self._backend.enable_truncation(max(max_length, 1))
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_with_ends(self, texts: Sequence[str], max_length: int) -> list[tuple[list[int], list[int]]]:
        """Returns the ids as `encode` does, and the place in the text, in characters, where each one ends."""
        self._backend.enable_truncation(max(max_length, 1))
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [(encoding.ids, [end for _, end in encoding.offsets]) for encoding in encodings]

    def tokens(self, text: str) -> list[str]:
        """Returns the subwords of a text, to look at."""
        self._backend.no_truncation()
        return self._backend.encode(text, add_special_tokens=False).tokens

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, without special tokens; blanks and capitals may not be as they were."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def save(self, path: str | Path) -> None:
        """Writes `tokenizer.json`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """Returns the content of `tokenizer.json`."""
        self._backend.no_truncation()
        if self._padding:
            self._backend.enable_padding(**self._padding)
        try:
            return self._backend.to_str(pretty=True)
        finally:
            self._backend.no_padding()


def _frame(backend: tokenizers.Tokenizer) -> Frame:
    if backend.post_processor is None:
        cls_id, sep_id = map(backend.token_to_id, (CLS, SEP))
        return Frame([], []) if cls_id is None or sep_id is None else Frame([cls_id], [sep_id])
    backend.no_truncation()
    for probe in _PROBES:
        encoding = backend.encode(probe)
        inside = [place for place, added in enumerate(encoding.special_tokens_mask) if not added]
        if inside:
            return Frame(encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :])
    raise DataError(f"the tokenizer makes nothing of any of {', '.join(_PROBES)}")


def load(path: str) -> Tokenizer:
    """Reads a `tokenizer.json`, or a BERT `vocab.txt` (lower-cased if it has no upper-case entry).

    Raises:
      DataError: there is no such file, or it is no tokenizer.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"tokenizer.path: no such file: {path!r}; expected a tokenizer.json or a vocab.txt")
    if file.suffix == ".json":
        try:
            return Tokenizer(tokenizers.Tokenizer.from_file(str(file)))
        except DataError:
            raise
        except Exception as error:  # the library raises a bare Exception
            raise DataError(f"tokenizer.path: {path} is not a tokenizer.json: {error}") from None
    try:
        words = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"tokenizer.path: {path} is not UTF-8: {error}") from None
    vocab = {word.rstrip("\r"): number for number, word in enumerate(words) if word.rstrip("\r")}
    if UNK not in vocab:
        raise DataError(
            f"tokenizer.path: {path} has no line {UNK}; expected a BERT vocab.txt, one token a line"
        )
    missing = [token for token in (PAD, CLS, SEP) if token not in vocab]
    if missing:
        raise DataError(f"the tokenizer has no token {', '.join(missing)}; it needs {PAD}, {CLS} and {SEP}")
    lower = not any(word != word.lower() for word in vocab if word not in SPECIAL_TOKENS)
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=UNK))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([token for token in SPECIAL_TOKENS if token in vocab])
    return Tokenizer(backend)


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    split_identifiers: bool = True,
    lowercase: bool = True,
    punctuation: bool = True,
    min_frequency: int = 2,
) -> Tokenizer:
    """Trains byte-pair encoding (Sennrich et al., 2016, "Neural Machine Translation of Rare Words
    with Subword Units"); a subword inside a word is written with a leading ##.

    Args:
      texts: of the training split.
      vocab_size: entries at most, special tokens included.
      split_identifiers: whether `parseIsoDate` and `parse_iso_date` become three words.
      lowercase: whether capitals are lowered, after identifiers are split.
      punctuation: whether signs are tokens too; a bag is better without.
      min_frequency: how often a pair must occur to be merged.

    Raises:
      ValueError: `vocab_size` leaves no room for characters.
    """
    model = models.BPE(unk_token=UNK, continuing_subword_prefix=_INSIDE)
    make_trainer = functools.partial(
        trainers.BpeTrainer,
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        continuing_subword_prefix=_INSIDE,
        show_progress=False,
    )
    return _train(model, make_trainer, texts, split_identifiers, lowercase, punctuation)


def train_wordpiece(
    texts: Iterable[str],
    *,
    vocab_size: int,
    split_identifiers: bool = True,
    lowercase: bool = True,
    punctuation: bool = True,
    min_frequency: int = 2,
) -> Tokenizer:
    """Trains WordPiece as BERT uses it (Wu et al., 2016, "Google's Neural Machine Translation System");
    the arguments and errors are those of `train_bpe`."""
    make_trainer = functools.partial(
        trainers.WordPieceTrainer, vocab_size=vocab_size, min_frequency=min_frequency, show_progress=False
    )
    model = models.WordPiece(unk_token=UNK)
    return _train(model, make_trainer, texts, split_identifiers, lowercase, punctuation)


def _train(
    model,
    make_trainer: Callable,
    texts: Iterable[str],
    split_identifiers: bool,
    lowercase: bool,
    punctuation: bool,
) -> Tokenizer:
    steps = [normalizers.Replace(Regex(_IDENTIFIER_BOUNDARY), " ")] if split_identifiers else []
    steps += [normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])]
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(steps)
    words = pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}\p{M}]+"), "removed")
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer() if punctuation else words
    backend.decoder = decoders.WordPiece()
    # The trainer numbers the characters inside words in the order in which it meets them in a hash map
    # of its own, and breaks ties between merges by these numbers: two trainings on the same texts would
    # differ. Given as special tokens they have fixed numbers; afterwards they are ordinary entries.
    texts = list(texts)
    # A third of the vocabulary at most for each of the two forms of a character.
    size = make_trainer.keywords["vocab_size"]
    if size < len(SPECIAL_TOKENS) + 3:
        raise ValueError(f"vocab_size is {size}; it must be at least {len(SPECIAL_TOKENS) + 3}")
    alphabet = _alphabet(backend.normalizer, texts, min(_ALPHABET_SIZE, (size - len(SPECIAL_TOKENS)) // 3))
    trainer = make_trainer(
        special_tokens=[*SPECIAL_TOKENS, *(_INSIDE + character for character in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    backend.train_from_iterator(texts, trainer)
    content = json.loads(backend.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in SPECIAL_TOKENS]
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))


def _alphabet(normalizer: normalizers.Normalizer, texts: Iterable[str], size: int) -> list[str]:
    """The commonest characters of the texts, in their own order; those too rare to keep become [UNK]."""
    counts = collections.Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    kept = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))[:size]
    return sorted(kept)
