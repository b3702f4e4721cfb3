"""Rows sorted by expert, each expert with as many as it has: those of all dispatchers without buffers.

Dimensions: M devices, of each R rows and e experts; E experts in all, D, F widths.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from moe import on_devices

Matmul = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@struct.dataclass
class SortedRows:
    """See `moe.dispatch.Rows`. On each device rows lie by expert; those of no expert come last.

    Attributes:
      values: float [M, R, D].
      sizes: int32 [M, e], how many rows each of a device's experts has.
      num_experts: E.
      product: `(x [R, D], w [e, D, F], sizes [e]) -> [R, F]`, see `moe.grouped_matmul`.
      split: whether each device has its own part of the experts, along the mesh axis `expert`; else e = E.
    """

    values: jax.Array
    sizes: jax.Array
    num_experts: int = struct.field(pytree_node=False)
    product: Matmul = struct.field(pytree_node=False)
    split: bool = struct.field(pytree_node=False, default=False)

    def matmul(self, w_EDF: jax.Array) -> "SortedRows":
        return self.replace(values=self._times(self.values, w_EDF))

    def add(self, b_EF: jax.Array) -> "SortedRows":
        # As a product with 1, its gradient is a sum over an expert's rows that has no scatter.
        ones_MR1 = jnp.ones_like(self.values[:, :, :1])
        return self.replace(values=self.values + self._times(ones_MR1, b_EF[:, None, :]))

    def map(self, function: Callable[..., jax.Array], *others: "SortedRows") -> "SortedRows":
        return self.replace(values=function(self.values, *(other.values for other in others)))

    def _times(self, values_MRD: jax.Array, w_EDF: jax.Array) -> jax.Array:
        by_device, weights = on_devices.groups_spec(), PartitionSpec()
        if self.split:
            weights = on_devices.experts_spec()
            w_EDF = w_EDF.astype(values_MRD.dtype)  # before `fsdp` gathers its parts
        return on_devices.run(
            lambda x, w, sizes: on_devices.stacked(self.product(x[0], w, sizes[0])),
            values_MRD,
            w_EDF,
            self.sizes,
            given=(by_device, weights, by_device),
        )
