"""A published encoder's folder of any size with random weights, and texts of mixed length to try one on."""

import json
import tempfile
from pathlib import Path
from pydoc_data import topics

import jax
import numpy as np

from backbones.pretrained import models
from backbones.pretrained.folder import CONFIG
from corpora import tokenizer as tokenizers
from corpora.tokens import TextSettings
from dual_encoder import pretrained_export
from dual_encoder.pretrained_pooling import Pooling
from dual_encoder.towers import Tower

_SHAPES = {name: np.zeros((1, 1), np.int32) for name in ("tokens", "mask", "segments")}


def write(
    folder: Path, *, layers: int, width: int, heads: int, hidden: int, vocabulary: int, length: int
) -> None:
    """Writes a sentence-transformers folder: BERT, mean pooling, vectors of length 1; dropout of 0.1 as
    BERT's.

    The tokenizer knows words of `texts`; a vocabulary above theirs has entries that no text has.
    """
    config = dict(
        model_type="bert",
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=hidden,
        max_position_embeddings=max(length, 512),
        type_vocab_size=2,
        hidden_act="gelu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        layer_norm_eps=1e-12,
        pad_token_id=0,
    )
    with tempfile.TemporaryDirectory() as described:
        (Path(described) / CONFIG).write_text(json.dumps(config))
        encoder = models.encoder(described)
    params = jax.device_get(jax.jit(encoder.init)(jax.random.key(0), _SHAPES)["params"])
    rng = np.random.default_rng(0)
    # Off their initial values, so that no bias or scale could be left out unnoticed.
    params = jax.tree.map(lambda x: x + 0.02 * rng.standard_normal(x.shape, np.float32), params)
    pretrained_export.save(
        folder,
        Tower(encoder, Pooling(("mean",))),
        {"encoder": params},
        config=config,
        tokenizer=tokenizers.train_wordpiece(_prose(), vocab_size=vocabulary, split_identifiers=False),
        text=TextSettings(length, length, special_tokens=True, document_template="{title} {text}"),
    )


def texts(count: int, *, words: float, spread: float, most: int, seed: int) -> list[str]:
    """Returns texts of mixed length: pieces of Python's own documentation, which every Python has.

    Args:
      count: how many.
      words: the median of their lengths.
      spread: the standard deviation of the logarithm of their lengths, which is normal.
      most: words of the longest.
      seed: of all that is drawn.
    """
    all_words = " ".join(_prose()).split()
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(words), spread, count)), 3, most).astype(int)
    starts = rng.integers(0, len(all_words) - most, count)
    return [" ".join(all_words[a : a + n]) for a, n in zip(starts, lengths, strict=True)]


def _prose() -> list[str]:
    return [topics.topics[name] for name in sorted(topics.topics)]
