"""Our parameters <-> the tensors of a published checkpoint, by a table that is read in both directions.

A table lists each tensor once, with its shape, and the path of our parameter. A linear layer of theirs is
[outputs, inputs], a kernel of ours [inputs, outputs]; a parameter of ours has all layers on axis 0, where
they have a tensor a layer. Names may all begin alike ("bert.", "model."), as in checkpoints of a model with a
head.

Letters: Y layers.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from backbones.pretrained.folder import PretrainedError, Tensors


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One line of a table.

    Attributes:
      names: of the tensor; several where one is kept under more than one name. `{layer}` is a number where
        there is one a layer.
      shape: theirs, of one layer.
      ours: paths of our parameters, such as "embed/table". Several where theirs holds them all, stacked in
        equal parts on axis 0.
      layers: Y, or None for a tensor that there is once.
      transpose: whether ours has its two axes the other way round.
      scale: ours is theirs times this.
      otherwise: names of a tensor that is read where this one is not there.
      first: the first layer that has the tensor; before it ours is 1, which nothing reads.
      prefixed: whether the name begins as the others do.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    ours: tuple[str, ...]
    layers: int | None = None
    transpose: bool = False
    scale: float = 1.0
    otherwise: tuple[str, ...] = ()
    first: int = 0
    prefixed: bool = True

    def numbered(self) -> Iterator[tuple[int | None, tuple[str, ...]]]:
        """(layer, names in it), or (None, names)."""
        if self.layers is None:
            yield None, self.names
            return
        for layer in range(self.first, self.layers):
            yield layer, tuple(name.format(layer=layer) for name in self.names)

    @property
    def part(self) -> tuple[int, ...]:
        """The shape of one of ours, of one layer."""
        rows = (self.shape[0] // len(self.ours), *self.shape[1:])
        return rows[::-1] if self.transpose else rows


@dataclasses.dataclass(frozen=True)
class Layout:
    """The table of a model. The first line is a tensor that every checkpoint of the kind has: from its name
    follows what stands before all names.

    Attributes:
      tensors: the lines.
      left_out: regular expressions of whole names that are no part of the model and may be there: heads,
        poolers, buffers. They are matched without what stands before all names.
      prefix: what is put before all names on writing.
    """

    tensors: tuple[Tensor, ...]
    left_out: tuple[str, ...] = ()
    prefix: str = ""


def linear(
    names: str, ours: str, outputs: int, inputs: int, layers: int | None, *, bias: bool = False
) -> tuple[Tensor, ...]:
    """The lines of a linear layer: `names` and `ours` without ".weight" and "/kernel"."""
    lines = [
        Tensor((f"{names}.weight",), (outputs, inputs), (f"{ours}/kernel",), layers, transpose=True),
        Tensor((f"{names}.bias",), (outputs,), (f"{ours}/bias",), layers),
    ]
    return tuple(lines if bias else lines[:1])


def norm(
    names: str,
    ours: str,
    width: int,
    layers: int | None,
    *,
    bias: bool = False,
    scale: float = 1.0,
    first: int = 0,
) -> tuple[Tensor, ...]:
    """The lines of a norm; the first checkpoints of BERT have other names for its two parts."""
    both = (("scale", f"{names}.weight", f"{names}.gamma"), ("bias", f"{names}.bias", f"{names}.beta"))
    lines = [
        Tensor(tuple(theirs), (width,), (f"{ours}/{leaf}",), layers, scale=scale, first=first)
        for leaf, *theirs in both
    ]
    return tuple(lines if bias else lines[:1])


def table(names: str | tuple[str, ...], ours: str, rows: int, width: int, **more: Any) -> Tensor:
    """The line of an embedding table."""
    names = (names,) if isinstance(names, str) else names
    return Tensor(names, (rows, width), (f"{ours}/table",), **more)


def read(layout: Layout, tensors: Tensors | Mapping[str, np.ndarray], where: Any) -> dict[str, Any]:
    """Returns our parameters, float32.

    Args:
      layout: the table.
      tensors: of a checkpoint.
      where: for messages, such as the folder.

    Raises:
      PretrainedError: a tensor is missing, is no part of the model or has another shape.
    """
    prefix = _prefix(layout, tensors, where)
    left = set(tensors)
    found: dict[tuple[str, ...], np.ndarray] = {}
    for line in layout.tensors:
        for path in line.ours:
            shape = line.part if line.layers is None else (line.layers, *line.part)
            found[tuple(path.split("/"))] = np.ones(shape, np.float32)
        for layer, names in line.numbered():
            full = [prefix + name if line.prefixed else name for name in names]
            instead = [prefix + name for name in line.otherwise]
            array = _take(tensors, full, instead, line.shape, left, where)
            for path, part in zip(line.ours, np.split(array, len(line.ours)), strict=True):
                # A float64 factor, so that writing finds the same number again but for the last bit.
                part = part if line.scale == 1.0 else part * np.float64(line.scale)
                to = found[tuple(path.split("/"))]
                to[... if layer is None else layer] = part.T if line.transpose else part
    for name in sorted(left):
        bare = name.removeprefix(prefix)
        if not any(re.fullmatch(pattern, bare) for pattern in layout.left_out):
            raise PretrainedError(
                f"{where}: tensor {name!r} is no part of the model that config.json describes"
            )
    return traverse_util.unflatten_dict(found)


def write(layout: Layout, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the tensors of our parameters, float32; a tensor with several names has the first.

    Raises:
      PretrainedError: a parameter is missing, is none of the table's or has another shape.
    """
    given = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    left = set(given)
    tensors: dict[str, np.ndarray] = {}
    for line in layout.tensors:
        for path in line.ours:
            shape = line.part if line.layers is None else (line.layers, *line.part)
            if path not in given:
                raise PretrainedError(f"parameter {path!r} is missing; allowed: all that config describes")
            if given[path].shape != shape:
                raise PretrainedError(f"parameter {path!r} has shape {given[path].shape}; allowed: {shape}")
        left.difference_update(line.ours)
        for layer, names in line.numbered():
            parts = [given[path] if layer is None else given[path][layer] for path in line.ours]
            array = np.concatenate([part.T if line.transpose else part for part in parts])
            array = array if line.scale == 1.0 else array / np.float64(line.scale)
            prefix = layout.prefix if line.prefixed else ""
            tensors[prefix + names[0]] = array.astype(np.float32)
    if left:
        raise PretrainedError(f"parameter {min(left)!r} is no part of the model that config describes")
    return tensors


def _take(
    tensors: Any, names: list[str], instead: list[str], shape: tuple[int, ...], left: set[str], where: Any
) -> np.ndarray:
    """The tensor under the first of its names; under the others, if it is there, it is the same."""
    there = [name for name in names if name in tensors] or [name for name in instead if name in tensors]
    if not there:
        raise PretrainedError(f"{where}: tensor {names[0]!r} is missing")
    left.difference_update(there)
    array = np.asarray(tensors[there[0]])
    if array.shape != shape:
        raise PretrainedError(f"{where}: tensor {there[0]!r} has shape {array.shape}; allowed: {shape}")
    for other in there[1:]:
        if not np.array_equal(array, tensors[other]):
            raise PretrainedError(f"{where}: tensors {there[0]!r} and {other!r} differ; allowed: one table")
    return array


def _prefix(layout: Layout, tensors: Mapping[str, Any], where: Any) -> str:
    """What stands before all names of a checkpoint."""
    known = layout.tensors[0].names
    found = {
        name.removesuffix(one) for name in tensors for one in known if name == one or name.endswith("." + one)
    }
    if not found:
        raise PretrainedError(f"{where}: tensor {known[0]!r} is missing")
    if len(found) > 1:
        names = " and ".join(repr(prefix + known[0]) for prefix in sorted(found))
        raise PretrainedError(f"{where} has {names}; allowed: the tensors of one model")
    return found.pop()
