"""What every encoder takes and returns.

Dimensions: B batch, L length, D model width.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from moe.feed_forward import Context

READ = ("tokens", "segments", "positions")


@struct.dataclass
class Encoded:
    """The output of an encoder; a pooler makes a vector, several, or vocabulary weights of it.

    Attributes:
      last: float [B, L, D], the last layer after the final norm; zero where `mask` is False.
      mask: bool [B, L], which positions hold something.
      layers: float [num_layers, B, L, D], each layer's output, before the final norm unless the encoder was
        asked for more, or None where it was not asked for any. Padded positions are finite and mean nothing.
      aux: additive sums of the feed-forward layers, each with a leading axis [num_layers]; `{}` where dense.
    """

    last: jax.Array
    mask: jax.Array
    layers: jax.Array | None = None
    aux: dict[str, Any] = struct.field(default_factory=dict)


def read_batch(batch: Mapping[str, jax.Array], train: bool) -> Context:
    """The context of a batch of texts.

    Args:
      batch: `tokens` int [B, L], `mask` [B, L] (True or 1 where there is a token); optionally `segments` and
        `positions`, int [B, L], and `domains`, int [B].
      train: whether dropout is on.

    Returns:
      Its arrays by name, with the mask as bool; the others are 0 where it is False, so that what lies under
      the mask cannot matter. Without `positions`, they count from 0 in one row [1, L].

    Raises:
      ValueError: an array is not [B, L], or `domains` not [B].
    """
    tokens_BL = jnp.asarray(batch["tokens"])
    for name in ("mask", *READ):
        shape = jnp.shape(batch[name]) if name in batch else tokens_BL.shape
        if shape != tokens_BL.shape or len(shape) != 2:
            raise ValueError(
                f"batch[{name!r}] has shape {shape}; allowed: [B, L] like tokens, {tokens_BL.shape}"
            )
    valid_BL = jnp.asarray(batch["mask"]).astype(bool)
    shown = {name: jnp.where(valid_BL, batch[name], 0) for name in READ if name in batch}
    shown.setdefault("positions", jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)[None])
    domains_B = batch.get("domains")
    if domains_B is not None and jnp.shape(domains_B) != tokens_BL.shape[:1]:
        raise ValueError(
            f"batch['domains'] has shape {jnp.shape(domains_B)}; allowed: [B], {tokens_BL.shape[:1]}"
        )
    return Context(valid=valid_BL, domains=domains_B, train=train, **shown)
