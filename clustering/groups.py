"""k-means of many small groups of vectors at once, each group clustered by itself.

What `kmeans.fit` does for one large group, this does for all groups of a stack in one program: the same first
centroids by k-means++, the same rule for clusters that lost all their vectors.

Letters: G groups, S slots for the vectors of a group, D width, K clusters of each group.
"""

import jax
import jax.numpy as jnp
from jax import lax

from clustering import kmeans, seeding


def fit(
    x_GSD: jax.Array, sizes_G: jax.Array, draws_GKL: jax.Array, iterations: int, tolerance: float
) -> jax.Array:
    """Finds K centroids of each group; for use in `jit`, and the groups may lie over a mesh.

    Args:
      x_GSD: float32; the vectors of a group come first, what is behind them does not count.
      sizes_G: int32, the vectors of each group; 0 for a group that is only there to fill the stack.
      draws_GKL: of `seeding.draws` for each group. Where fewer than K vectors of a group differ, some of its
        centroids are equal.
      iterations: at most so many.
      tolerance: stops once an iteration lowers no group's inertia by more than this share of it.

    Returns:
      float32 [G, K, D]
    """
    valid_GS = jnp.arange(x_GSD.shape[1])[None, :] < sizes_G[:, None]
    means_GD = jnp.where(valid_GS[:, :, None], x_GSD, 0.0).sum(axis=1) / jnp.maximum(sizes_G, 1)[:, None]
    x_GSD = jnp.where(valid_GS[:, :, None], x_GSD - means_GD[:, None, :], 0.0)
    centroids_GKD = jax.vmap(seeding.plus_plus)(x_GSD, valid_GS, draws_GKL)

    def go_on(carry):
        number, falls, _, _ = carry
        return (number < iterations) & falls

    def step(carry):
        number, _, before_G, centroids_GKD = carry
        inertia_G, centroids_GKD = jax.vmap(_iterate)(x_GSD, valid_GS, centroids_GKD)
        falls = (before_G - inertia_G > tolerance * before_G).any()
        return number + 1, falls, inertia_G, centroids_GKD

    before_G = jnp.full(len(x_GSD), jnp.finfo(jnp.float32).max)
    *_, centroids_GKD = lax.while_loop(go_on, step, (0, True, before_G, centroids_GKD))
    return centroids_GKD + means_GD[:, None, :]


def _iterate(x_SD, valid_S, centroids_KD):
    """One step of Lloyd's: the inertia before it and the centroids after it."""
    K = len(centroids_KD)
    cluster_S, squared_S = kmeans.nearest(x_SD, centroids_KD)
    squared_S = jnp.where(valid_S, squared_S, 0.0)
    one_hot_SK = (cluster_S[:, None] == jnp.arange(K)[None, :]) & valid_S[:, None]
    empty_K = ~one_hot_SK.any(axis=0)
    # The farthest vectors leave for the empty clusters: the farthest for the lowest, and so on.
    farthest_E = lax.top_k(squared_S, min(K, len(x_SD)))[1]
    rank_K = jnp.minimum(jnp.cumsum(empty_K) - 1, len(farthest_E) - 1)
    moved_K = farthest_E[jnp.maximum(rank_K, 0)]
    leaves_S = jnp.zeros(len(x_SD), jnp.int32).at[moved_K].add(empty_K.astype(jnp.int32)) > 0
    weights_SK = (one_hot_SK & ~leaves_S[:, None]).astype(jnp.float32)
    counts_K = weights_SK.sum(axis=0)
    sums_KD = jnp.matmul(weights_SK.T, x_SD, precision=lax.Precision.HIGHEST)
    means_KD = jnp.where(counts_K[:, None] > 0, sums_KD / jnp.maximum(counts_K, 1.0)[:, None], centroids_KD)
    # A slot behind the vectors has distance 0, so it moves only where nothing is left to gain.
    takes_K = empty_K & (squared_S[moved_K] > 0)
    return squared_S.sum(), jnp.where(takes_K[:, None], x_SD[moved_K], means_KD)
