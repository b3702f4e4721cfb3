"""Relative positions as a learned bias on the attention scores, as in T5 (Raffel et al., 2020, "Exploring the
Limits of Transfer Learning with a Unified Text-to-Text Transformer").

One table serves all layers: an encoder or decoder makes the bias once and hands it to every block. A module
for `TransformerEncoder.bias` is `(positions of queries, positions of keys) -> float32 [B or 1, H, L, M]`.

Dimensions: B batch, H heads, L length of queries, M length of keys, R buckets.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn


class RelativeBias(nn.Module):
    """A learned scalar per head and bucket of distance; the table is float32 [R, H].

    T5 does not divide the scores by sqrt(d), `attention.attend` does: its query kernels times sqrt(d) fit.
    The table starts as in T5X, uniform with variance 2 / (R + H).

    Attributes:
      heads: H, as in the attention.
      num_buckets: R; even where bidirectional.
      max_distance: from here on all distances share the last bucket.
      bidirectional: whether keys after the query have buckets of their own (an encoder), or are all in bucket
        0 (a decoder, which does not see them).
    """

    heads: int
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True

    @nn.compact
    def __call__(self, queries_BL: jax.Array, keys_BM: jax.Array) -> jax.Array:
        """The bias between two rows of positions.

        Args:
          queries_BL: int32 positions [B, L] or [1, L].
          keys_BM: likewise [B, M] or [1, M].

        Returns:
          float32 [B, H, L, M], or [1, H, L, M] where both rows are shared.

        Raises:
          ValueError: a field is out of range.
        """
        if self.heads < 1:
            raise ValueError(f"heads is {self.heads}; allowed: an integer of at least 1")
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        table_RH = self.param("table", init, (self.num_buckets, self.heads), jnp.float32)
        distance_BLM = keys_BM[:, None, :] - queries_BL[:, :, None]
        bucket_BLM = bucket(
            distance_BLM,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )
        return jnp.moveaxis(table_RH[bucket_BLM], -1, 1)


def bucket(
    distance: jax.Array, *, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
) -> jax.Array:
    """The bucket of each distance, position of the key minus position of the query.

    Of the r buckets of one direction (half of `num_buckets` where bidirectional), the first r/2 hold one
    distance each. The others grow: n is in bucket r/2 + floor(r/2 log(2n / r) / log(2 max_distance / r)), at
    most r - 1. Keys after the query come second. The bounds are computed in whole numbers, so no rounding
    of a logarithm moves a distance that lies on one.

    >>> print(bucket(jnp.array([0, -1, -7, -8, -11, -12, -127, -500, 1, 8])))
    [ 0  1  7  8  8  9 15 15 17 24]

    Args:
      distance: int32 [...].
      num_buckets: how many in all.
      max_distance: where the last bucket ends to grow.
      bidirectional: False puts all keys after the query in bucket 0.

    Returns:
      int32 [...] in [0, num_buckets).

    Raises:
      ValueError: num_buckets is below 2 a direction, or odd and bidirectional; max_distance is not more than
        half of the buckets of a direction.
    """
    directions = 2 if bidirectional else 1
    if num_buckets < 2 * directions or num_buckets % directions:
        allowed = "an even number of at least 4" if bidirectional else "an integer of at least 2"
        raise ValueError(f"num_buckets is {num_buckets}; allowed: {allowed}")
    one_way = num_buckets // directions
    exact = one_way // 2
    if max_distance <= exact:
        raise ValueError(f"max_distance is {max_distance}; allowed: more than {exact}, the exact buckets")
    first = jnp.where(distance > 0, one_way, 0) if bidirectional else 0
    distance = jnp.abs(distance) if bidirectional else jnp.maximum(-distance, 0)
    above = sum((distance >= bound).astype(jnp.int32) for bound in bounds(one_way, exact, max_distance))
    return first + jnp.minimum(distance, exact) + above


def bounds(one_way: int, exact: int, max_distance: int) -> list[int]:
    """The least distance of each growing bucket but the first: the least n with
    (n / exact)^grown >= (max_distance / exact)^j, for j = 1, 2, ..., where `grown` buckets grow."""
    grown = one_way - exact
    return [
        next(n for n in range(exact, max_distance + 1) if n**grown >= exact ** (grown - j) * max_distance**j)
        for j in range(1, grown)
    ]
