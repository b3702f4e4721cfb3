"""Groups of tokens: what shares a capacity, and what a router may look at of each token.

A group is a number of sequences that stand one after the other in the batch, padding included. By default it
is one sequence, so that no sequence can take another's place. The number is a config value: it depends on
neither the mesh nor the size of a batch.

Dimensions: B batch, L length, D model width, G groups, S tokens of a group.
"""

import jax
import jax.numpy as jnp
from flax import struct

from moe.feed_forward import Context


@struct.dataclass
class Tokens:
    """What a router may look at besides x, token by token.

    Attributes:
      valid: bool [G, S]; False marks padding, which is never routed.
      rows: int32 [G, S], the row of the batch that a token is of.
      positions: int32 [G, S], its position in that row.
      tokens: int32 [G, S] token ids, or None.
      domains: int32 [G, S] domains, or None.
      train: whether router noise is on; static under jit.
    """

    valid: jax.Array
    rows: jax.Array
    positions: jax.Array
    tokens: jax.Array | None = None
    domains: jax.Array | None = None
    train: bool = struct.field(pytree_node=False, default=False)


def group(x_BLD: jax.Array, context: Context, group_rows: int | None) -> tuple[jax.Array, Tokens]:
    """Cuts a batch into groups.

    Args:
      x_BLD: the input of a layer.
      context: of the batch.
      group_rows: sequences of a group; None makes the whole batch one.

    Returns:
      x as [G, S, D] with S = group_rows L, and its tokens.

    Raises:
      ValueError: group_rows does not divide the batch.
    """
    batch, length, width = x_BLD.shape
    size = batch if group_rows is None else group_rows
    if size < 1 or batch % size:
        raise ValueError(
            f"group_rows is {group_rows}; allowed: a divisor of the batch's {batch} rows, or None for all"
        )

    def cut(array: jax.Array) -> jax.Array:
        return jnp.broadcast_to(array, (batch, length)).reshape(batch // size, size * length)

    positions = jnp.arange(length, dtype=jnp.int32)[None] if context.positions is None else context.positions
    return x_BLD.reshape(batch // size, size * length, width), Tokens(
        valid=cut(context.valid),
        rows=cut(jnp.arange(batch, dtype=jnp.int32)[:, None]),
        positions=cut(positions),
        tokens=None if context.tokens is None else cut(context.tokens),
        domains=None if context.domains is None else cut(context.domains[:, None]),
        train=context.train,
    )
