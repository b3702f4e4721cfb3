"""Where a dispatcher's groups lie on a mesh, and functions of the groups that a device has.

Groups are split over the batch axes of the mesh in force (`jax.set_mesh`), as the rows of a batch are. What
sorts, or places by index, runs on each device by itself with its own groups: left to the compiler, a sort of
all groups gathers them first. Without a mesh, all is one device.

Letters: G groups, E experts.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from training.mesh import BATCH_AXES

EXPERT, TENSOR = "expert", "tensor"  # mesh axes


def batch_axes() -> tuple[str, ...]:
    """Returns the mesh axes over which groups are split; none within `run`, where they are one device's."""
    mesh = jax.sharding.get_abstract_mesh()
    here = set(mesh.manual_axes)
    return tuple(name for name in BATCH_AXES if mesh.shape.get(name, 1) > 1 and name not in here)


def parts() -> int:
    """Returns into how many parts groups are split."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[name] for name in batch_axes())


def expert_parts() -> int:
    """Returns into how many parts the experts are split."""
    return jax.sharding.get_abstract_mesh().shape.get(EXPERT, 1)


def groups_spec() -> PartitionSpec:
    """Returns how an array lies whose first axis is groups."""
    return PartitionSpec(batch_axes())


def experts_spec() -> PartitionSpec:
    """Returns how an array lies whose first axis is experts."""
    return PartitionSpec(EXPERT if expert_parts() > 1 else None)


def exchanged_spec() -> PartitionSpec:
    """Returns how an array [G, E, ...] lies whose experts are where their weights are."""
    others = tuple(name for name in batch_axes() if name != EXPERT)
    return PartitionSpec(others, *experts_spec())


def check_groups(groups: int, what: str = "groups") -> None:
    """Raises ValueError unless the devices divide the groups of a batch, or so many of something else."""
    shape = jax.sharding.get_abstract_mesh().shape
    if groups % parts():
        sizes = ", ".join(f"{name}={shape[name]}" for name in batch_axes())
        raise ValueError(
            f"the batch makes {groups} {what}, which the {parts()} devices of the batch axes ({sizes}) do "
            "not divide; group_rows, batch or mesh must change"
        )


def check_experts(num_experts: int) -> None:
    """Raises ValueError unless the mesh axis `expert` divides the experts."""
    if num_experts % expert_parts():
        raise ValueError(
            f"num_experts is {num_experts}; allowed: a multiple of the mesh axis expert={expert_parts()}"
        )


def check_no_tensor(what: str) -> None:
    """Raises ValueError where the mesh in force has the axis `tensor`."""
    size = jax.sharding.get_abstract_mesh().shape.get(TENSOR, 1)
    if size > 1:
        raise ValueError(f"the mesh has tensor={size}; allowed with {what}: 1")


def stacked(of_device: Any) -> Any:
    """Returns a pytree of a device's own, as `run` takes its results: first of all an axis of devices, here
    of size 1."""
    return jax.tree.map(lambda x: x[None], of_device)


def unstacked(of_devices: Any) -> Any:
    """Returns what `stacked` was given, of an argument of a function in `run`."""
    return jax.tree.map(lambda x: x[0], of_devices)


def run(function: Callable[..., Any], *args: Any, given: Any = None, result: Any = None) -> Any:
    """Calls a function of arrays on every device with the parts that it has.

    Args:
      function: may use collectives over the batch axes.
      *args: pytrees.
      given: how each argument lies, PartitionSpecs; None for groups first in all of them.
      result: likewise of the results.
    """
    if not batch_axes():
        return function(*args)
    mesh = jax.sharding.get_abstract_mesh()
    # The compiler splits along `tensor`, where it has a say; a TPU's own kernels need all axes here.
    left = {TENSOR} if mesh.shape.get(TENSOR, 1) > 1 else set()
    return jax.shard_map(
        function,
        in_specs=groups_spec() if given is None else given,
        out_specs=groups_spec() if result is None else result,
        axis_names=set(mesh.axis_names) - left,
        check_vma=False,
    )(*args)
