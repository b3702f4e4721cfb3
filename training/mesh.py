"""The devices of a run as a mesh with five axes, and how batches are placed on it.

    replica   slices of a machine that only a data-center network joins; as many as there are slices
    data      copies of the parameters
    fsdp      parts of the parameters, gathered where they are used (Rajbhandari et al., 2020, "ZeRO")
    tensor    parts of heads and of feed-forward layers (Shoeybi et al., 2019, "Megatron-LM")
    expert    parts of the experts of sparse layers

The rows of a batch are split over all of these but `tensor`. A mesh has all five axes, of size 1 where a
config does not use one, so that a rule may name any of them. Letters: B rows of a batch.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("replica", "data", "fsdp", "tensor", "expert")
BATCH_AXES = ("replica", "data", "fsdp", "expert")
BATCH = "batch"  # in a rule: all of BATCH_AXES

Rule = Sequence[Any]  # (regular expression, spec)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The field `mesh` of a config: how devices are arranged and what lies where.

    A rule is a pair of a regular expression and a spec, and the first whose expression is found counts; what
    no rule matches is whole on every device. A spec has, for each of the last axes of an array, None, the
    name of a mesh axis, "batch" for all that split the batch, or a tuple of names; the axes before them stay
    whole, so that a rule for a kernel holds for the stacked kernels of all layers.

    Attributes:
      axes: size by name, any of AXES; one may be -1, for the devices that are left. An axis that is not
        named has size 1.
      parameters: rules from a parameter's path, such as "model/query/encoder/embed/table"; the optimizer's
        state lies as its parameter does. See training.rules.
      activations: rules from the names that modules give to activations, see training.activations.

    Raises:
      ValueError: an axis or a rule is malformed.
    """

    axes: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"data": -1})
    parameters: Sequence[Rule] = ()
    activations: Sequence[Rule] = ()

    def __post_init__(self):
        for name, size in self.axes.items():
            if name not in AXES:
                raise ValueError(f"axes has {name!r}; allowed: {', '.join(AXES)}")
            if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
                raise ValueError(f"axes.{name} is {size!r}; allowed: a positive integer, or -1 for the rest")
        if sum(size == -1 for size in self.axes.values()) > 1:
            raise ValueError(f"axes are {dict(self.axes)}; allowed: -1 for one of them")
        for field in ("parameters", "activations"):
            for rule in getattr(self, field):
                _check_rule(rule, field)

    def mesh(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """Returns the mesh over all devices, or the given ones.

        A mesh smaller than the machine takes the first devices, where one process has them all.

        Raises:
          ValueError: the sizes do not come out at the devices there are, or `replica` not at the slices.
        """
        devices = list(jax.devices() if devices is None else devices)
        sizes = resolve(self.axes, len(devices))
        needed = math.prod(sizes)
        shown = ", ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True) if size > 1)
        if needed > len(devices):
            raise ValueError(f"mesh {shown} needs {needed} devices; there are {len(devices)}")
        if needed < len(devices):
            if jax.process_count() > 1:
                raise ValueError(f"mesh {shown or 'of size 1'} leaves {len(devices) - needed} devices idle")
            devices = devices[:needed]
        slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
        if slices == 1:
            array = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        else:
            if sizes[0] != slices:
                raise ValueError(f"axes.replica is {sizes[0]}; allowed: {slices}, the slices there are")
            within, across = (1, *sizes[1:]), (slices, *(1 for _ in sizes[1:]))
            array = mesh_utils.create_hybrid_device_mesh(
                within, across, devices, allow_split_physical_axes=True
            )
        return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def resolve(axes: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """Returns the size of each of AXES, where -1 takes what the others leave of the devices.

    >>> resolve({"data": -1, "tensor": 2}, 8)
    (1, 4, 1, 2, 1)

    Raises:
      ValueError: the others do not divide the devices.
    """
    known = math.prod(size for size in axes.values() if size != -1)
    sizes = []
    for name in AXES:
        size = axes.get(name, 1)
        if size == -1 and devices % known:
            raise ValueError(
                f"axes.{name} is -1 and the others come to {known}, which does not divide {devices} devices"
            )
        sizes.append(devices // known if size == -1 else size)
    return tuple(sizes)


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with all (or the given) devices on the axis `data`."""
    return Layout().mesh(devices)


def spec(rule_spec: Sequence[Any]) -> PartitionSpec:
    """Returns what a rule's spec says of the last axes of an array.

    >>> spec(("batch", None, "tensor"))
    PartitionSpec(('replica', 'data', 'fsdp', 'expert'), None, 'tensor')
    """

    def axes(entry: Any) -> Any:
        if entry is None or isinstance(entry, str):
            return BATCH_AXES if entry == BATCH else entry
        return tuple(name for each in entry if each for name in (BATCH_AXES if each == BATCH else (each,)))

    return PartitionSpec(*map(axes, rule_spec))


def fit(rule_spec: Sequence[Any], shape: Sequence[int], mesh: Mesh, what: str) -> PartitionSpec:
    """Returns the spec for an array of a shape, with the axes in front whole.

    Raises:
      ValueError: it has more axes than the array, or a mesh axis does not divide; `what` is named.
    """
    shape = tuple(shape)
    last = spec(rule_spec)
    if len(last) > len(shape):
        raise ValueError(
            f"{what} has shape {shape}, and its rule {tuple(rule_spec)!r} names {len(last)} axes; allowed: "
            f"at most {len(shape)}"
        )
    full = (None,) * (len(shape) - len(last)) + tuple(last)
    for number, (size, names) in enumerate(zip(shape, full, strict=True)):
        names = () if names is None else (names,) if isinstance(names, str) else names
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts:
            used = ", ".join(f"{name}={mesh.shape[name]}" for name in names if mesh.shape[name] > 1)
            raise ValueError(
                f"{what} has shape {shape}; mesh axis {used} does not divide its axis {number}, {size}"
            )
    return PartitionSpec(*full)


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Returns how the rows of a batch lie, which are the axis after `leading` whole ones."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, BATCH_AXES))


def batch_parts(mesh: Mesh) -> int:
    """Returns into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def check_rows(rows: int, mesh: Mesh, *, parts: int = 1, what: str = "batch_size") -> None:
    """Raises ValueError unless rows divide among the mesh, in each of so many microbatches."""
    ways = batch_parts(mesh)
    if rows % (ways * parts):
        times = f" times {parts} microbatches" if parts > 1 else ""
        axes = ", ".join(f"{name}={mesh.shape[name]}" for name in BATCH_AXES if mesh.shape[name] > 1)
        split = f"{ways} parts of a batch ({axes})" if axes else "one device"
        raise ValueError(f"{what} has {rows} rows, which {split}{times} do not divide")


def held_rows(rows: int, mesh: Mesh) -> np.ndarray:
    """Returns which rows of a batch of B this process holds, ascending int64; all of them in one process."""
    check_rows(rows, mesh)
    held = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held]))


def shard_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, *, whole: bool = True, parts: int = 1
) -> dict[str, jax.Array]:
    """Places a batch on the mesh, split by its rows, the leading axis.

    Args:
      batch: arrays with the same leading axis.
      mesh: the devices.
      whole: whether each process has all rows of the batch, or only its own, see `held_rows`.
      parts: microbatches that a step cuts the batch into.

    Raises:
      ValueError: the rows do not divide among the mesh and the microbatches.
    """
    sharding = batch_sharding(mesh)
    ways = batch_parts(mesh)
    whole = whole or jax.process_count() == 1
    ours = ways if whole else len(held_rows(ways, mesh))
    held: dict[int, np.ndarray] = {}  # by rows, which are the same for all arrays
    placed = {}
    for name, array in batch.items():
        rows = len(array) * ways // ours
        check_rows(rows, mesh, parts=parts, what=f"batch_size: {name}")
        if not whole and rows not in held:
            held[rows] = held_rows(rows, mesh)
        placed[name] = _put(array, (rows, *array.shape[1:]), sharding, held.get(rows))
    return placed


def put(tree: Any, shardings: Any) -> Any:
    """Places host arrays, which every process has whole, as a tree of shardings (or one for all) says."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda x, s: _put(np.asarray(x), np.shape(x), s, None), tree, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Places a copy of every host array on every device of the mesh."""
    return put(tree, NamedSharding(mesh, PartitionSpec()))


def replicate_missing(tree: Any, mesh: Mesh) -> Any:
    """As `replicate`, but arrays that are on the mesh already stay as they are, whole or in parts."""

    def placed(leaf: Any) -> jax.Array:
        on_mesh = isinstance(leaf, jax.Array) and getattr(leaf.sharding, "mesh", None) == mesh
        return leaf if on_mesh else replicate(leaf, mesh)

    return jax.tree.map(placed, tree)


def random_key(seed: int, mesh: Mesh) -> jax.Array:
    """Returns the random key of a seed, on every device of the mesh."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(jax.random.key, static_argnums=0, out_shardings=whole)(seed)


def to_host(tree: Any) -> Any:
    """Returns every array whole on this host, wherever its parts lie; all processes call it together."""

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(whole, tree)


def _put(array: np.ndarray, shape: tuple[int, ...], sharding: NamedSharding, held: np.ndarray | None):
    def part(index: tuple[slice, ...]) -> np.ndarray:
        if held is None:
            return array[index]
        first, end, _ = index[0].indices(shape[0])
        at = int(np.searchsorted(held, first))
        return array[at : at + end - first]

    return jax.make_array_from_callback(shape, sharding, part)


def _check_rule(rule: Any, field: str) -> None:
    pair = isinstance(rule, tuple | list) and len(rule) == 2 and isinstance(rule[0], str)
    if not pair or not isinstance(rule[1], tuple | list):
        raise ValueError(f"{field} has {rule!r}; allowed: (regular expression, spec) pairs")
    try:
        re.compile(rule[0])
    except re.error as error:
        raise ValueError(f"{field}: {rule[0]!r} is no regular expression: {error}") from None
    names = [n for axis in rule[1] for n in (axis if isinstance(axis, tuple | list) else (axis,))]
    for name in names:
        if name not in (*AXES, BATCH, None):
            raise ValueError(f"{field}: {rule!r} names {name!r}; allowed: {', '.join(AXES)}, {BATCH}, None")
    flat = [n for name in names if name for n in (BATCH_AXES if name == BATCH else (name,))]
    if len(set(flat)) < len(flat):
        raise ValueError(f"{field}: {rule!r} names a mesh axis twice; allowed: once")
