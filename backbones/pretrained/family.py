"""What each family of architectures says of itself, for `backbones.pretrained.models`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from backbones.pretrained.fields import Fields
from backbones.pretrained.names import Layout


@dataclasses.dataclass(frozen=True)
class Options:
    """What config.json does not decide.

    Attributes:
      causal: whether a token sees only itself and those before it; None is what the architecture does.
      dropout: all of its rates; None takes those of config.json.
      segments: whether the batch's segments are token types, as in pairs of texts; otherwise every token has
        the first type.
      more: further arguments of `backbones.encoder.TransformerEncoder` or `decoder.TransformerDecoder`.
    """

    causal: bool | None = None
    dropout: float | None = None
    segments: bool = False
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def rate(self, fields: Fields, name: str, default: float) -> float:
        """The rate of dropout that config.json calls `name`."""
        return fields.number(name, default) if self.dropout is None else self.dropout


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A `model_type` as a decoder with its output table.

    Attributes:
      architecture: the class of transformers that has the tensors we write.
      build: from config.json to the module; of an encoder and decoder, to both.
      layout: from config.json to the table of its tensors.
    """

    architecture: str
    build: Callable[[Fields, Options], Any]
    layout: Callable[[Fields], Layout]


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type` of config.json.

    Attributes:
      architecture: the class of transformers that has the tensors of the encoder that we write.
      encoder: from config.json to the module.
      layout: from config.json to the table of its tensors.
      language: as a causal language model, or None.
      encoder_decoder: as an encoder with a decoder, or None.
    """

    architecture: str
    encoder: Callable[[Fields, Options], nn.Module]
    layout: Callable[[Fields], Layout]
    language: Decoder | None = None
    encoder_decoder: Decoder | None = None


def never_causal(fields: Fields, options: Options) -> None:
    """Raises PretrainedError where an encoder that sees all of a text is to look only back."""
    if options.causal:
        raise fields.wrong("model_type", fields.get("model_type"), "a decoder, where causal is True")


def no_segments(fields: Fields, options: Options) -> None:
    """Raises PretrainedError where an architecture without token types is to read segments."""
    if options.segments:
        raise fields.wrong(
            "model_type", fields.get("model_type"), "one with token types, where segments is True"
        )
