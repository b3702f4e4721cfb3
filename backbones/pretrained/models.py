"""Published encoders and decoders, from a local folder in the format of Hugging Face, and back into one.

    encoder = models.encoder("FOLDER")
    params = jax.device_put(models.parameters("FOLDER"))
    encoded = encoder.apply({"params": params}, {"tokens": tokens_BL, "mask": mask_BL})
    models.save("OTHER", folder.read_config("FOLDER"), params)

The module follows from config.json alone, so a config can name it:

    encoder=dict(name="backbones.pretrained.models.encoder", path="FOLDER")

What is read of each architecture, and what is refused, is in docs/pretrained.md.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from backbones.decoder import TransformerDecoder
from backbones.encoder import TransformerEncoder
from backbones.pretrained import bert, llama, modernbert, names, t5
from backbones.pretrained.family import Decoder, Family, Options
from backbones.pretrained.fields import Fields
from backbones.pretrained.folder import open_folder, read_config, write_folder

FAMILIES: dict[str, Family] = {
    **bert.FAMILIES,
    **modernbert.FAMILIES,
    **t5.FAMILIES,
    **llama.FAMILIES,
}

Path = str | pathlib.Path


def encoder(
    path: Path,
    *,
    causal: bool | None = None,
    dropout: float | None = None,
    segments: bool = False,
    dtype: str = "float32",
    remat: Callable[..., bool] | None = None,
    return_layers: bool = False,
    unroll: int = 1,
) -> nn.Module:
    """The encoder that a folder's config.json describes; the weights are not read.

    Args:
      path: of the folder.
      causal: whether a token sees only itself and those before it. None is what the architecture does; False
        makes a decoder bidirectional, and True is for decoders alone.
      dropout: all of its rates; None takes those of config.json.
      segments: whether the batch's segments are token types, as in the pairs of a cross-encoder; otherwise
        every token has type 0, as in published encoders of single texts.
      dtype, remat, return_layers, unroll: see `backbones.encoder.TransformerEncoder`.

    Returns:
      A module `(batch, *, train, prefix) -> Encoded`.

    Raises:
      PretrainedError: config.json is missing, of an architecture that is not read, or has a setting that is
        not.
    """
    more = dict(dtype=dtype, remat=remat, return_layers=return_layers, unroll=unroll)
    family, fields = _family(read_config(path), path)
    return family.encoder(fields, Options(causal=causal, dropout=dropout, segments=segments, more=more))


def parameters(path: Path) -> dict[str, Any]:
    """The parameters of `encoder(path)`, NumPy float32.

    Raises:
      PretrainedError: as `encoder`; there are no safetensors, or a tensor is missing, of another shape or no
        part of the model.
    """
    found = open_folder(path)
    family, fields = _family(found.config, path)
    return names.read(family.layout(fields), found.tensors, path)


def save(path: Path, config: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Writes config.json and model.safetensors that Hugging Face reads.

    Args:
      path: a folder without weights; it is made where it is not there.
      config: of config.json, as `folder.read_config` gives it; what it says of the weights' dtype and class
        is set to what is written.
      params: of the module that `encoder` makes of it.

    Raises:
      PretrainedError: config is not one that `encoder` reads, a parameter does not fit it, or the folder has
        weights already.
    """
    family, fields = _family(config, path)
    tensors = names.write(family.layout(fields), jax.device_get(params))
    write_folder(path, _written(config, family.architecture), tensors)


def decoder(
    path: Path,
    *,
    dropout: float | None = None,
    dtype: str = "float32",
    remat: Callable[..., bool] | None = None,
    unroll: int = 1,
) -> TransformerDecoder:
    """The causal language model that a folder's config.json describes, with its output table.

    Args:
      path: of the folder.
      dropout: as in `encoder`.
      dtype, remat, unroll: see `backbones.decoder.TransformerDecoder`.

    Raises:
      PretrainedError: as `encoder`; or the architecture is no decoder.
    """
    kind, fields = _decoder(read_config(path), path, "language")
    more = dict(dtype=dtype, remat=remat, unroll=unroll)
    return kind.build(fields, Options(dropout=dropout, more=more))


def decoder_parameters(path: Path) -> dict[str, Any]:
    """The parameters of `decoder(path)`; see `parameters`."""
    return _read(path, "language")


def save_decoder(path: Path, config: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Writes a folder with the output table; see `save`."""
    _write(path, config, params, "language")


def encoder_decoder(
    path: Path,
    *,
    dropout: float | None = None,
    dtype: str = "float32",
    remat: Callable[..., bool] | None = None,
    unroll: int = 1,
) -> tuple[TransformerEncoder, TransformerDecoder]:
    """The encoder and the decoder that a folder's config.json describes, with one table of tokens.

    Args, Raises: see `decoder`.
    """
    kind, fields = _decoder(read_config(path), path, "encoder_decoder")
    more = dict(dtype=dtype, remat=remat, unroll=unroll)
    return kind.build(fields, Options(dropout=dropout, more=more))


def encoder_decoder_parameters(path: Path) -> dict[str, Any]:
    """The parameters of `encoder_decoder(path)`, under `encoder` and `decoder`; see `parameters`."""
    return _read(path, "encoder_decoder")


def save_encoder_decoder(path: Path, config: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Writes a folder with both; see `save`."""
    _write(path, config, params, "encoder_decoder")


def _read(path: Path, what: str) -> dict[str, Any]:
    found = open_folder(path)
    kind, fields = _decoder(found.config, path, what)
    return names.read(kind.layout(fields), found.tensors, path)


def _write(path: Path, config: Mapping[str, Any], params: Mapping[str, Any], what: str) -> None:
    kind, fields = _decoder(config, path, what)
    tensors = names.write(kind.layout(fields), jax.device_get(params))
    write_folder(path, _written(config, kind.architecture), tensors)


def _decoder(config: Mapping[str, Any], path: Path, what: str) -> tuple[Decoder, Fields]:
    """The form of a family that has a decoder: "language" or "encoder_decoder"."""
    fields = Fields(config, path)
    allowed = tuple(name for name, family in FAMILIES.items() if getattr(family, what) is not None)
    return getattr(FAMILIES[fields.one_of("model_type", allowed)], what), fields


def _written(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """The config of float32 weights of an architecture."""
    dtype = "torch_dtype" if "torch_dtype" in config else "dtype"  # the older name, the newer one
    return {**config, "architectures": [architecture], dtype: "float32"}


def _family(config: Mapping[str, Any], path: Path) -> tuple[Family, Fields]:
    fields = Fields(config, path)
    return FAMILIES[fields.one_of("model_type", tuple(FAMILIES))], fields
