"""The devices of a run as a mesh, and how batches and states are placed on it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with one axis, `data`, over all (or the given) devices."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, *, parts: int = 1) -> dict[str, jax.Array]:
    """Places a process's share of a batch, split over the mesh by its leading axis.

    Args:
      batch: arrays with the same leading axis.
      mesh: the devices.
      parts: microbatches that a step cuts the batch into.

    Raises:
      ValueError: the leading axis does not divide into parts that divide among this process's devices.
    """
    devices = len(mesh.local_devices)
    for name, array in batch.items():
        if array.shape[0] % (devices * parts):
            raise ValueError(
                f"batch_size: {name} has {array.shape[0]} rows, which {devices} devices"
                f"{f' times {parts} microbatches' if parts > 1 else ''} do not divide"
            )
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Places a copy of every array on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
