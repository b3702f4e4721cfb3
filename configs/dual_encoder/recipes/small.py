"""The encoder that recipes of towers and heads are shown on: 2 layers of 128, which two cores train from
scratch on MedQuAD in about a minute with `steps=200,batch=128`."""

from typing import Any

import ml_collections

from configs.dual_encoder import parts

VOCAB_SIZE, WIDTH, LAYERS = 8_000, 128, 2
QUERY_LENGTH, DOCUMENT_LENGTH = 24, 64
RATE = 1e-3


def tower(**changes: Any) -> dict:
    """Its tower, with other fields than those of `parts.transformer_tower`."""
    return {**parts.transformer_tower(VOCAB_SIZE, WIDTH, LAYERS), **changes}


def encoder(**changes: Any) -> dict:
    return {**tower()["encoder"], **changes}


def use(config: ml_collections.ConfigDict, given: Any, model: dict | None = None) -> None:
    """Puts the small Transformer, or a `model` made of its parts, in the place of the config's model."""
    if model is None:
        model = dict(name="dual_encoder.towers.tied", tower=tower())
    config.tokenizer.update(vocab_size=VOCAB_SIZE, punctuation=True)
    config.text = parts.text(QUERY_LENGTH, DOCUMENT_LENGTH, special_tokens=True)
    config.task = parts.contrastive(model)
    config.optimizer = parts.adam(RATE, given.steps, weight_decay=0.01)
    config.mesh = parts.transformer_mesh()
    config.schedule = parts.schedule(given.steps, evaluations=2)
