"""A tower written as a sentence-transformers folder: `SentenceTransformer(FOLDER)` gives the same vectors."""

import functools
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from safetensors import numpy as safetensors_numpy

from backbones.pretrained import models
from backbones.pretrained.folder import WEIGHTS, PretrainedError
from corpora import pretrained_tokenizer
from corpora.tokenizer import Tokenizer
from corpora.tokens import TextSettings
from dual_encoder import poolers, pretrained_pooling
from dual_encoder.pretrained import ACTIVATIONS
from dual_encoder.pretrained_folder import ACTIVATIONS as TORCH_ACTIVATIONS
from dual_encoder.pretrained_folder import (
    MODULE_CONFIG,
    MODULES,
    POOLING_FLAGS,
    SETTINGS,
    TRANSFORMER_CONFIGS,
)
from dual_encoder.towers import Tower

_POOLERS = {
    poolers.cls: "cls",
    poolers.max: "max",
    poolers.mean: "mean",
    poolers.last: "lasttoken",
    poolers.weighted_mean: "weightedmean",
}


def save(
    path: str | Path,
    tower: Tower,
    params: Mapping[str, Any],
    *,
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    text: TextSettings,
) -> None:
    """Writes a folder.

    Passages are no part of it: a text is cut at its length, as without a `passage_stride`.

    Args:
      path: a folder that is not there yet, or is empty.
      tower: its encoder came from `backbones.pretrained.models`; with one of the poolers of
        sentence-transformers and a head of linear layers with known activations, or none.
      params: of the tower.
      config: config.json of the encoder, as `backbones.pretrained.folder.read_config` gives it.
      tokenizer: gives the ids.
      text: lengths and prompts.

    Raises:
      PretrainedError: there is something that such a folder cannot say; it is named.
      DataError: the tokenizer has no token to fill a batch with.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PretrainedError(f"{folder} is there already; allowed: a new folder")
    # All that can be refused comes before the first file.
    modes, include_prompt = _pooling(tower)
    if any(tower.unpooled):
        raise PretrainedError(f"unpooled is {tower.unpooled}; allowed: (0, 0)")
    projections = _projections(tower.head, params.get("head", {}))
    prompts = {
        "query": _prompt("query_template", text.query_template, "{text}"),
        "document": _prompt("document_template", text.document_template, "{title} {text}"),
    }
    width = _width(params["encoder"])
    folder.mkdir(parents=True, exist_ok=True)
    models.save(folder, config, params["encoder"])
    longest = max(text.query_length, text.document_length)
    pretrained_tokenizer.save(folder, tokenizer, max_length=longest, special_tokens=text.special_tokens)
    lengths = {} if text.query_length == text.document_length else {"query_length": text.query_length}
    _write(
        folder / TRANSFORMER_CONFIGS[0], max_seq_length=text.document_length, do_lower_case=False, **lengths
    )
    modules = [("Transformer", "")]
    modules.append(_module(folder, modules, "Pooling", **_pooling_config(modes, width, include_prompt)))
    for tensors, fields in projections:
        modules.append(_module(folder, modules, "Dense", **fields))
        safetensors_numpy.save_file(tensors, folder / modules[-1][1] / WEIGHTS, metadata={"format": "pt"})
    if tower.normalize:
        modules.append(_module(folder, modules, "Normalize"))
    _write(
        folder / SETTINGS,
        model_type="SentenceTransformer",
        prompts=prompts,
        default_prompt_name=None,
        similarity_fn_name="cosine" if tower.normalize else "dot",
    )
    listed = [
        dict(idx=number, name=str(number), path=place, type=f"sentence_transformers.models.{kind}")
        for number, (kind, place) in enumerate(modules)
    ]
    (folder / MODULES).write_text(json.dumps(listed, indent=2) + "\n")


def _pooling(tower: Tower) -> tuple[tuple[str, ...], bool]:
    """The names of the poolings, and whether prompts are pooled."""
    pooler = tower.pooler
    if isinstance(pooler, pretrained_pooling.Pooling):
        return pooler.modes, not pooler.skip
    if isinstance(pooler, functools.partial) and not pooler.args and not pooler.keywords:
        pooler = pooler.func  # as a config names it
    if pooler not in _POOLERS:
        raise PretrainedError(
            f"the pooler is {pooler}; allowed: {', '.join(f.__name__ for f in _POOLERS)} of "
            "dual_encoder.poolers, or that of a pretrained tower"
        )
    return (_POOLERS[pooler],), True


def _pooling_config(modes: tuple[str, ...], width: int, include_prompt: bool) -> dict[str, Any]:
    """Flags, which every release reads, unless their order is another one."""
    usual = tuple(mode for mode in POOLING_FLAGS.values() if mode in modes)
    if usual == modes:
        named = {flag: mode in modes for flag, mode in POOLING_FLAGS.items()}
    else:
        named = {"pooling_mode": list(modes)}
    return {"word_embedding_dimension": width, **named, "include_prompt": include_prompt}


def _projections(
    head: nn.Module | None, params: Mapping[str, Any]
) -> list[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Of each linear layer of a head, its tensors and the fields of its config.json."""
    if head is None:
        return []
    layers = list(head.layers) if isinstance(head, nn.Sequential) else [head]
    made = []
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.Dense):
            own = params[f"layers_{number}"] if isinstance(head, nn.Sequential) else params
            own = jax.device_get(own)
            after = layers[number + 1] if number + 1 < len(layers) else None
            activation = next((name for name, f in ACTIVATIONS.items() if f is after), "identity")
            made.append(_projection(own, activation))
        elif layer not in ACTIVATIONS.values() or not number or not isinstance(layers[number - 1], nn.Dense):
            raise PretrainedError(
                f"the head has {layer}; allowed: flax.linen.Dense, each alone or with an activation of "
                f"{', '.join(ACTIVATIONS)} after it"
            )
    return made


def _projection(
    params: Mapping[str, np.ndarray], activation: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors = {"linear.weight": np.ascontiguousarray(params["kernel"].T, np.float32)}
    if "bias" in params:
        tensors["linear.bias"] = np.ascontiguousarray(params["bias"], np.float32)
    width_in, width = params["kernel"].shape
    torch_names = {name: path for path, name in TORCH_ACTIVATIONS.items()}
    fields = dict(
        in_features=width_in,
        out_features=width,
        bias="bias" in params,
        activation_function=torch_names[activation],
    )
    return tensors, fields


def _prompt(name: str, template: str, ending: str) -> str:
    """What a template puts before `ending`, with nothing else in it."""
    fields = [field for _, field, _, _ in string.Formatter().parse(ending) if field]
    parts = list(string.Formatter().parse(template or ("{text}" if ending == "{text}" else "")))
    literals, found = [part[0] for part in parts], [part[1] for part in parts]
    if found != fields or literals[1:] != [" "] * (len(fields) - 1):
        raise PretrainedError(
            f"text.{name} is {template!r}; allowed in a sentence-transformers folder: a prompt before "
            f"{ending!r}"
        )
    return literals[0]


def _width(params: Mapping[str, Any]) -> int:
    """The model width of an encoder with these parameters."""
    return int(params["embed"]["table"].shape[1])


def _module(folder: Path, before: list[tuple[str, str]], kind: str, **config: Any) -> tuple[str, str]:
    place = f"{len(before)}_{kind}"
    (folder / place).mkdir()
    _write(folder / place / MODULE_CONFIG, **config)
    return kind, place


def _write(file: Path, **content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
