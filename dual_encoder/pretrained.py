"""Published encoders from a local folder, as towers: a sentence-transformers or a plain Hugging Face folder.

    model = pretrained.model("FOLDER")                       # a config names it, from the JSON files alone
    params = {"query": pretrained.parameters("FOLDER")}      # of its one tower
    tokenizer, text = pretrained.tokenizer("FOLDER"), TextSettings(**pretrained.text("FOLDER"))

What is read of a folder is in `dual_encoder.pretrained_folder`; `dual_encoder.pretrained_export` writes one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from backbones.pretrained import models
from backbones.pretrained.folder import PretrainedError, Tensors, weight_files
from corpora import pretrained_tokenizer
from corpora.tokenizer import Tokenizer
from dual_encoder.pretrained_folder import Projection, describe
from dual_encoder.pretrained_pooling import Pooling
from dual_encoder.towers import DualEncoder, Tower


def _same(x: jax.Array) -> jax.Array:
    return x


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


# After a linear layer of a head.
ACTIVATIONS = {
    "identity": _same,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": _gelu,
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
}


def model(path: str, **options: Any) -> DualEncoder:
    """The dual encoder of a folder: one tower for queries and documents.

    Where the folder leaves prompts out of the pooling there are two, which share all parameters.

    Args:
      path: of the folder.
      **options: of `tower`.

    Raises:
      PretrainedError: see `tower`.
    """
    described = describe(path)
    made = tower(path, **options)
    if described.include_prompt:
        return DualEncoder(query=made, document=made)
    words = tokenizer(path)
    query, document = (
        dataclasses.replace(made.pooler, skip=_prompt_tokens(words, prompt))
        for prompt in (described.query_prompt(), described.document_prompt())
    )
    return DualEncoder(query=made.clone(pooler=query), document=made.clone(pooler=document))


def tower(
    path: str,
    *,
    pooling: str | Sequence[str] | None = None,
    normalize: bool | None = None,
    causal: bool | None = None,
    dropout: float | None = None,
    dtype: str = "float32",
    remat: Callable[..., bool] | None = None,
    unroll: int = 1,
) -> Tower:
    """The tower that a folder describes; the weights are not read.

    Args:
      path: of the folder.
      pooling: one or several of `dual_encoder.pretrained_folder.POOLINGS`, concatenated; None for the
        folder's own, which a plain Hugging Face folder has not.
      normalize: whether vectors are scaled to length 1. None is as the folder says: its last module does so,
        or vectors are compared by their cosine, and not by their product.
      causal, dropout, dtype, remat, unroll: see `backbones.pretrained.models.encoder`.

    Raises:
      PretrainedError: a file is missing, or says what is not supported; a plain folder without a `pooling`.
    """
    described = describe(path)
    modes = (pooling,) if isinstance(pooling, str) else tuple(pooling or described.pooling)
    if not modes:
        raise PretrainedError(
            f"{path} has no modules.json that names a pooling; allowed: pooling=mean, or another of "
            "dual_encoder.pretrained_folder.POOLINGS"
        )
    if normalize is None:
        normalize = described.normalized or described.similarity == "cosine"
    return Tower(
        encoder=models.encoder(
            described.transformer, causal=causal, dropout=dropout, dtype=dtype, remat=remat, unroll=unroll
        ),
        pooler=Pooling(modes),
        head=_head(described.projections),
        normalize=normalize,
    )


def parameters(path: str) -> dict[str, Any]:
    """The parameters of `tower(path)`: NumPy float32, `encoder`, and `head` where there are projections.

    Raises:
      PretrainedError: as `tower`; there are no safetensors, or a tensor is missing, of another shape or no
        part of the model.
    """
    described = describe(path)
    params = {"encoder": models.parameters(described.transformer)}
    if described.projections:
        params["head"] = _head_parameters(described.projections)
    return params


def tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a folder. Raises DataError where there is none, PretrainedError as `tower`."""
    described = describe(path)
    return pretrained_tokenizer.load(str(described.transformer), described.lower_case)


def text(
    path: str,
    *,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    length: int | None = None,
) -> dict[str, Any]:
    """How texts become tokens for a folder's encoder: the fields of `corpora.tokens.TextSettings`.

    Args:
      path: of the folder.
      query_prompt, document_prompt: names of its prompts; None for the usual ones, see
        `dual_encoder.pretrained_folder.Described`.
      length: tokens a text is cut to, its frame included; None for the folder's own.

    Raises:
      PretrainedError: the folder says what is not supported, has no prompt of that name, or no length.
    """
    described = describe(path)
    lengths = (length or described.query_length, length or described.document_length)
    if None in lengths:
        raise PretrainedError(f"nothing in {path} says how long a text may be; give a length")
    return dict(
        query_length=lengths[0],
        document_length=lengths[1],
        special_tokens=True,
        lead_length=0,
        query_template=_literal(described.query_prompt(query_prompt)) + "{text}",
        document_template=_literal(described.document_prompt(document_prompt)) + "{title} {text}",
        passage_stride=0,
    )


def _literal(prompt: str) -> str:
    return prompt.replace("{", "{{").replace("}", "}}")


def _prompt_tokens(words: Tokenizer, prompt: str) -> int:
    """Tokens before a text that are of its prompt, with those of the frame; none without a prompt."""
    if not prompt:
        return 0
    return len(words.frame.first) + len(words.encode([prompt], 10**6)[0])


def _head(projections: Sequence[Projection]) -> nn.Module | None:
    if not projections:
        return None
    layers = []
    for projection in projections:
        layers.append(nn.Dense(projection.width, use_bias=projection.use_bias))
        layers.append(ACTIVATIONS[projection.activation])
    return nn.Sequential(layers)


def _head_parameters(projections: Sequence[Projection]) -> dict[str, dict[str, np.ndarray]]:
    params = {}
    for number, projection in enumerate(projections):
        tensors = Tensors(projection.folder, weight_files(projection.folder))
        shapes = {"linear.weight": (projection.width, projection.width_in)}
        if projection.use_bias:
            shapes["linear.bias"] = (projection.width,)
        if set(tensors) != set(shapes):
            raise PretrainedError(
                f"{projection.folder} has the tensors {', '.join(sorted(tensors))}; allowed: "
                f"{', '.join(sorted(shapes))}"
            )
        for name, shape in shapes.items():
            if tensors.shape(name) != shape:
                raise PretrainedError(
                    f"{projection.folder}: {name} has shape {tensors.shape(name)}; allowed: {shape}"
                )
        kernel = np.ascontiguousarray(tensors["linear.weight"].T)
        bias = {"bias": tensors["linear.bias"]} if projection.use_bias else {}
        params[f"layers_{2 * number}"] = {"kernel": kernel, **bias}
    return params
