"""A local folder in the format of Hugging Face: config.json beside the weights, in one file or in shards.

Weights are safetensors alone. A pickled file (pytorch_model.bin) is a program that runs when it is read, so
it is refused.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
_PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class PretrainedError(ValueError):
    """A folder cannot be read or written; the message names what is wrong and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Attributes:
      path: where it lies.
      config: its config.json.
      tensors: tensor name -> float32 array, read from the file at each look-up.
    """

    path: pathlib.Path
    config: dict[str, Any]
    tensors: "Tensors"


def open_folder(path: str | pathlib.Path) -> Folder:
    """Opens a folder; tensors are read when they are asked for.

    Raises:
      PretrainedError: there is no such folder, no config.json or no safetensors; weights are pickled; a shard
        is missing, or holds other tensors than the index says.
    """
    folder = pathlib.Path(path)
    return Folder(folder, read_config(folder), Tensors(folder, weight_files(folder)))


def read_config(path: str | pathlib.Path) -> dict[str, Any]:
    """Returns the config.json of a folder.

    Raises:
      PretrainedError: there is no folder, or no file of that name that is a JSON object.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise PretrainedError(f"{folder} is no folder; allowed: a local folder with {CONFIG} and {WEIGHTS}")
    return read_json(folder / CONFIG)


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Returns a file's JSON object; PretrainedError where there is none."""
    if not file.is_file():
        raise PretrainedError(f"{file.parent} has no {file.name}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PretrainedError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise PretrainedError(f"{file} holds a {type(found).__name__}; allowed: an object")
    return found


def weight_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns tensor name -> the file that holds it."""
    if (folder / WEIGHTS).is_file():
        return dict.fromkeys(_names(folder / WEIGHTS), folder / WEIGHTS)
    if not (folder / SHARDS).is_file():
        pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
        if pickled:
            raise PretrainedError(
                f"{folder} has its weights in {pickled[0]} alone, a pickle, which can run any program "
                f"when it is read; allowed: {WEIGHTS} (save the model again with safe_serialization=True)"
            )
        raise PretrainedError(f"{folder} has no weights; allowed: {WEIGHTS}, or its shards with {SHARDS}")
    listed = read_json(folder / SHARDS).get("weight_map")
    if not isinstance(listed, dict):
        raise PretrainedError(f"{folder / SHARDS} has no weight_map")
    for shard in sorted(set(listed.values())):
        if pathlib.PurePath(shard).name != shard or not (folder / shard).is_file():
            raise PretrainedError(f"{folder} has no shard {shard!r}, which its {SHARDS} names")
        said = {name for name, place in listed.items() if place == shard}
        if differs := sorted(said ^ set(_names(folder / shard))):
            raise PretrainedError(f"{folder / shard} and {SHARDS} disagree about {differs[0]!r}")
    return {name: folder / shard for name, shard in listed.items()}


def write_folder(
    path: str | pathlib.Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Writes config.json and model.safetensors, in float32.

    Raises:
      PretrainedError: the folder has weights already.
    """
    folder = pathlib.Path(path)
    for name in (WEIGHTS, SHARDS):
        if (folder / name).exists():
            raise PretrainedError(f"{folder} has a {name} already; allowed: a folder without weights")
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    # The metadata is what transformers asks for.
    safetensors_numpy.save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a folder by name, as float32.

    Args:
      folder: for messages.
      files: tensor name -> file.
    """

    def __init__(self, folder: pathlib.Path, files: Mapping[str, pathlib.Path]):
        self.folder = folder
        self._files = files
        self._open = functools.cache(_opened)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._open(self._files[name]).get_slice(name).get_shape())

    def __getitem__(self, name: str) -> np.ndarray:
        """Raises PretrainedError where the tensor is not of floating-point numbers."""
        file = self._open(self._files[name])
        kind = file.get_slice(name).get_dtype()
        if kind not in _FLOATS:
            raise PretrainedError(f"{self.folder}: {name} is {kind}; allowed: {', '.join(_FLOATS)}")
        return file.get_tensor(name).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _opened(file: pathlib.Path) -> Any:
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise PretrainedError(f"{file} is no safetensors file: {error}") from error


def _names(file: pathlib.Path) -> list[str]:
    return list(_opened(file).keys())
