"""The tokenizer of a published model: a folder with tokenizer.json, as Hugging Face's libraries write it.

What tokenizer_config.json says beside it is taken over into the tokenizer, so that its own tokenizer.json is
all that a run needs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers, processors

from corpora import tokenizer
from corpora.tables import DataError
from corpora.tokenizer import TOKENIZER_FILE, Tokenizer

CONFIG_FILE = "tokenizer_config.json"
_VOCABULARY = "vocab.txt"
# Fields of tokenizer_config.json by what tokenizer.json calls them in BERT's normalizer.
_BERT_FIELDS = {
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}


def load(path: str, lower_case: bool = False) -> Tokenizer:
    """Reads the tokenizer of a folder.

    Args:
      path: the folder.
      lower_case: whether texts are lowered first, as `do_lower_case` of a sentence-transformers folder says.

    Raises:
      DataError: there is none, it is no tokenizer, or it cuts texts at their beginning.
    """
    folder = Path(path).expanduser()
    config = read_config(folder)
    if config.get("truncation_side", "right") != "right":
        raise DataError(
            f"{folder / CONFIG_FILE}: truncation_side is {config['truncation_side']!r}; allowed: 'right'"
        )
    if not (folder / TOKENIZER_FILE).exists() and (folder / _VOCABULARY).exists():
        content = json.loads(tokenizer.load(str(folder / _VOCABULARY)).to_json())
    else:
        content = _read_json(folder / TOKENIZER_FILE)
        if content is None:
            raise DataError(f"{folder} has no {TOKENIZER_FILE}, nor a {_VOCABULARY} of BERT's")
    found = content.get("normalizer") or {}
    if found.get("type") == "BertNormalizer":
        found |= {ours: config[theirs] for ours, theirs in _BERT_FIELDS.items() if theirs in config}
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"{folder / TOKENIZER_FILE} is not a tokenizer.json: {error}") from None
    if lower_case:
        steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
        backend.normalizer = normalizers.Sequence(steps)
    _add_ends(backend, config, folder)
    if backend.padding is None and (pad := special(config, "pad_token")) is not None:
        _enable_padding(backend, pad)
    return Tokenizer(backend)


def save(folder: Path, made: Tokenizer, *, max_length: int, special_tokens: bool) -> None:
    """Writes tokenizer.json and tokenizer_config.json, from which Hugging Face's libraries make a tokenizer
    that gives the same ids.

    Args:
      folder: where to.
      made: the tokenizer.
      max_length: tokens a text is cut to, its frame included.
      special_tokens: whether texts stand in the tokenizer's frame.

    Raises:
      DataError: nothing in the vocabulary can fill a batch.
    """
    backend = tokenizers.Tokenizer.from_str(made.to_json())
    first, last = ([backend.id_to_token(i) for i in ids] for ids in made.frame)
    if not special_tokens:
        first = last = []
    used = list(dict.fromkeys([*first, *last]))
    backend.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last], special_tokens=[(token, backend.token_to_id(token)) for token in used]
    )
    if backend.padding is None:
        known = [
            token for token in (*tokenizer.PADS, *last, *first) if backend.token_to_id(token) is not None
        ]
        if not known:
            raise DataError(f"the tokenizer has no token to fill a batch with, such as {tokenizer.PAD}")
        _enable_padding(backend, known[0])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # all else is in tokenizer.json
        "model_max_length": max_length,
        "pad_token": backend.padding["pad_token"],
        # What marks a token as special there, so that it is told from those of a prompt.
        **({"cls_token" if first[0] == tokenizer.CLS else "bos_token": first[0]} if first else {}),
        **({"sep_token" if last[-1] == tokenizer.SEP else "eos_token": last[-1]} if last else {}),
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    backend.no_padding()
    (folder / TOKENIZER_FILE).write_text(backend.to_str(pretty=True), encoding="utf-8")
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """Returns what tokenizer_config.json says, with what special_tokens_map.json adds; {} without them."""
    mapped = _read_json(folder / "special_tokens_map.json") or {}
    return {**mapped, **(_read_json(folder / CONFIG_FILE) or {})}


def special(config: Mapping[str, Any], name: str) -> str | None:
    """Returns a special token of tokenizer_config.json, such as `pad_token`."""
    token = config.get(name)
    return token.get("content") if isinstance(token, Mapping) else token


def _add_ends(backend: tokenizers.Tokenizer, config: Mapping[str, Any], folder: Path) -> None:
    """Adds the tokens that add_bos_token and add_eos_token ask for to a frame that has them not."""
    frame = Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str())).frame
    first, last = ([backend.id_to_token(i) for i in ids] for ids in frame)
    before = len(first) + len(last)
    for field, name, ends, at in (
        ("add_bos_token", "bos_token", first, 0),
        ("add_eos_token", "eos_token", last, len(last)),
    ):
        if config.get(field) and not ends:
            token = special(config, name)
            if token is None or backend.token_to_id(token) is None:
                raise DataError(f"{folder / CONFIG_FILE}: {field} is true and {name} is {token!r}")
            ends.insert(at, token)
    if len(first) + len(last) > before:
        tokens = [(token, backend.token_to_id(token)) for token in dict.fromkeys([*first, *last])]
        backend.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last], special_tokens=tokens
        )


def _enable_padding(backend: tokenizers.Tokenizer, token: str) -> None:
    pad_id = backend.token_to_id(token)
    if pad_id is not None:
        backend.enable_padding(pad_id=pad_id, pad_token=token)


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{file} is damaged: {error}") from None
