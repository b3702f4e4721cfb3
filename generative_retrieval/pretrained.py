"""A published encoder and decoder as a model that writes text, from a local folder; see
`backbones.pretrained.models`.

    model=dict(name="generative_retrieval.pretrained.encoder_decoder", path="FOLDER")

Its parameters are `backbones.pretrained.models.encoder_decoder_parameters("FOLDER")`. Symbols are the words
of its tokenizer, of which 0 begins what is written.
"""

from typing import Any

from backbones.pretrained import models
from generative_retrieval.models import EncoderDecoder


def encoder_decoder(path: models.Path, **more: Any) -> EncoderDecoder:
    """The model of T5 or mT5 that a folder's config.json describes.

    Args:
      path: of the folder.
      **more: see `backbones.pretrained.models.encoder_decoder`.

    Raises:
      PretrainedError: see there.
    """
    return EncoderDecoder(*models.encoder_decoder(path, **more))
