"""The loop over the layers of an encoder or a decoder."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn


def scanned(
    layer: Callable, num_layers: int, *, unroll: int = 1, remat: Callable[..., bool] | None = None
) -> Callable[[nn.Module, Any, Any], tuple[Any, Any]]:
    """A loop in which each parameter of the block is stacked over layers on axis 0, and each layer has random
    streams of its own.

    Args:
      layer: `(block, state, given) -> (state, result)`.
      num_layers: how many.
      unroll: how many are unrolled in each step of the loop; the values do not depend on it.
      remat: what the backward pass keeps, from `backbones.remat`; None keeps everything.

    Returns:
      `(block, state, given) -> (state, result)`, where `given` and `result` have layers on axis 0.

    Raises:
      ValueError: num_layers or unroll is not positive.
    """
    for field, value in (("num_layers", num_layers), ("unroll", unroll)):
        if value < 1:
            raise ValueError(f"{field} is {value}; allowed: an integer of at least 1")
    if remat is not None:
        layer = nn.remat(layer, policy=remat, prevent_cse=False)
    return nn.scan(layer, variable_axes={True: 0}, split_rngs={True: True}, length=num_layers, unroll=unroll)
