"""Lloyd's k-means (Lloyd, 1982, "Least Squares Quantization in PCM") over vectors that come in blocks.

Vectors are read a block at a time, so that they need not fit a device, nor memory where they are a file that
is mapped. Over a mesh the rows of a block lie on its devices. Sums are products with one-hot rows: unlike
scattered additions these come out the same each time, on every kind of device.

The first centroids are drawn by k-means++ (`seeding`) from a sample of the vectors, all where they are few.
A cluster that lost all its vectors takes the one farthest from its centroid, which leaves its own
cluster: the farthest goes to the lowest of the empty clusters, the next to the next. So the inertia never
rises. Where fewer than k vectors differ, some clusters stay empty.

Letters: N vectors, D width, K clusters, B rows of a block.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from clustering import rows as reading
from clustering import seeding
from clustering.rows import Rows, Seed

_SAMPLE = 64  # vectors a cluster from which the first centroids are drawn
_SMALLEST_SAMPLE = 1 << 14
_FEWEST = 256  # slots for the sample


@dataclasses.dataclass(frozen=True, eq=False)
class KMeans:
    """The result of `fit`.

    Attributes:
      centroids_KD: float32.
      counts_K: int32, how many vectors are nearest to each.
      inertia: sum of the squared distances of all vectors from their nearest centroids.
      history: the inertia of the centroids before each iteration, and at last `inertia`.
    """

    centroids_KD: np.ndarray
    counts_K: np.ndarray
    inertia: float
    history: tuple[float, ...]


def fit(
    vectors,
    k: int,
    *,
    seed: Seed = 0,
    iterations: int = 50,
    restarts: int = 1,
    tolerance: float = 1e-4,
    sharding: NamedSharding | None = None,
) -> KMeans:
    """Finds k centroids; the same for the same vectors and seed, however the vectors come.

    Args:
      vectors: floating point [N, D], or a sequence of blocks, see `rows.Rows`; read once an iteration.
      k: clusters, N at most.
      seed: an int, 0 or more, or several, or a key of jax.random.
      iterations: at most so many, in each restart.
      restarts: from so many draws of first centroids; the result with the least inertia is kept.
      tolerance: stops once an iteration lowers the inertia by no more than this share of it.
      sharding: of the rows of a block over a mesh, such as `training.mesh.batch_sharding(mesh)`.

    Raises:
      ValueError: a number is out of its range, or `vectors` is malformed or not finite.
    """
    rows = Rows(vectors)
    reading.check_count("k", k, 1, len(rows))
    reading.check_count("iterations", iterations, 0)
    reading.check_count("restarts", restarts)
    reading.check_count("tolerance", tolerance, 0)
    seed = reading.seed_numbers(seed)
    # A block that holds all is put on the device once.
    size = reading.block_size(len(rows), k, sharding)
    held = list(rows.blocks(size, sharding)) if len(rows) <= size else None
    best = None
    for number in range(restarts):
        random = reading.generator(seed, number)
        sample_SD = rows.sample(max(_SAMPLE * k, _SMALLEST_SAMPLE), random)
        centroids_KD = _first_centroids(sample_SD, seeding.draws(random, k))
        found = _lloyd(rows, held, size, centroids_KD, iterations, tolerance, sharding)
        if best is None or found.inertia < best.inertia:
            best = found
    return best


def assign(
    vectors, centroids_KD: np.ndarray, *, sharding: NamedSharding | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest centroid of each vector.

    Args:
      vectors: floating point [N, D], or a sequence of blocks.
      centroids_KD: floating point.
      sharding: of the rows of a block over a mesh.

    Returns:
      cluster_N: int32; of equally near centroids the lower.
      squared_N: float32, the squared distance.

    Raises:
      ValueError: the widths differ, or `vectors` is malformed or not finite.
    """
    rows = Rows(vectors)
    centroids_KD = checked_centroids(centroids_KD, rows.width)
    size = reading.block_size(len(rows), len(centroids_KD), sharding)
    cluster_N, squared_N = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    run, start = reading.jitted(nearest, sharding), 0
    for x_BD, count in rows.blocks(size, sharding):
        cluster_B, squared_B = run(x_BD, centroids_KD)
        cluster_N[start : start + count] = np.asarray(cluster_B)[:count]
        squared_N[start : start + count] = np.asarray(squared_B)[:count]
        start += count
    reading.check_finite(squared_N)
    return cluster_N, squared_N


def nearest(x_ND: jax.Array, centroids_KD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the nearest centroid int32 [N], ties to the lower, and its squared distance; under `jit`."""
    # Distances are compared by norms and products, which lose fewer digits near the origin.
    shift_D = centroids_KD.mean(axis=0)
    x_ND, centroids_KD = x_ND - shift_D[None, :], centroids_KD - shift_D[None, :]
    products_NK = jnp.matmul(x_ND, centroids_KD.T, precision=lax.Precision.HIGHEST)
    scores_NK = (centroids_KD * centroids_KD).sum(axis=1)[None, :] - 2 * products_NK
    cluster_N = jnp.argmin(scores_NK, axis=1).astype(jnp.int32)
    away_ND = x_ND - centroids_KD[cluster_N]
    return cluster_N, (away_ND * away_ND).sum(axis=1)


def checked_centroids(centroids_KD, width: int) -> np.ndarray:
    """Returns the centroids as float32, or raises a ValueError unless they are [K, width]."""
    centroids_KD = np.asarray(centroids_KD, np.float32)
    if centroids_KD.ndim != 2 or len(centroids_KD) < 1 or centroids_KD.shape[1] != width:
        raise ValueError(f"centroids have shape {centroids_KD.shape}; allowed: [clusters, {width}]")
    return centroids_KD


def _first_centroids(sample_SD: np.ndarray, draws_KL: np.ndarray) -> np.ndarray:
    mean_D = sample_SD.mean(axis=0)
    size = max(reading.power_of_two(len(sample_SD)), _FEWEST)  # few sizes, for each is compiled
    valid_S = np.arange(size) < len(sample_SD)
    sample_SD = reading.padded(sample_SD - mean_D, size)
    drawn_KD = reading.jitted(seeding.plus_plus, None)(sample_SD, valid_S, draws_KL)
    return np.asarray(drawn_KD) + mean_D


def _lloyd(rows, held, size, centroids_KD, iterations, tolerance, sharding) -> KMeans:
    history = []
    while True:
        sums_KD, counts_K, inertia = _pass(held or rows.blocks(size, sharding), centroids_KD, sharding)
        history.append(inertia)
        empty = np.flatnonzero(counts_K == 0)
        stalled = len(history) > 1 and history[-2] - inertia <= tolerance * history[-2]
        if len(history) > iterations or inertia == 0 or (stalled and not len(empty)):
            return KMeans(centroids_KD, counts_K, inertia, tuple(history))
        if len(empty):
            moved_ED = _leave_farthest(rows, centroids_KD, sums_KD, counts_K, len(empty), sharding)
        centroids_KD = np.where(
            counts_K[:, None] > 0, sums_KD / np.maximum(counts_K, 1)[:, None], centroids_KD
        ).astype(np.float32)
        if len(empty):
            centroids_KD[empty] = moved_ED


def _pass(blocks, centroids_KD, sharding) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns sums [K, D] and counts [K] of the vectors by nearest centroid, and the inertia."""
    K, D = centroids_KD.shape
    run = reading.jitted(_add_block, sharding)
    centroids_KD = jnp.asarray(centroids_KD)
    sums_KD, counts_K, inertias = jnp.zeros((K, D)), jnp.zeros(K, jnp.int32), []
    for x_BD, count in blocks:
        sums_KD, counts_K, inertia = run(sums_KD, counts_K, x_BD, count, centroids_KD)
        inertias.append(inertia)
    inertia = float(np.sum([np.asarray(each, np.float64) for each in inertias]))
    reading.check_finite(inertia)
    return np.array(sums_KD), np.array(counts_K), inertia


def _add_block(sums_KD, counts_K, x_BD, count, centroids_KD):
    cluster_B, squared_B = nearest(x_BD, centroids_KD)
    valid_B = jnp.arange(len(x_BD)) < count
    chosen_BK = (cluster_B[:, None] == jnp.arange(len(counts_K))[None, :]) & valid_B[:, None]
    added_KD = jnp.matmul(chosen_BK.astype(jnp.float32).T, x_BD, precision=lax.Precision.HIGHEST)
    counts_K = counts_K + chosen_BK.sum(axis=0, dtype=jnp.int32)
    return sums_KD + added_KD, counts_K, jnp.where(valid_B, squared_B, 0.0).sum()


def _leave_farthest(rows, centroids_KD, sums_KD, counts_K, count, sharding) -> np.ndarray:
    """Takes the farthest vectors [count, D] out of their clusters' sums and counts, and returns them."""
    cluster_N, squared_N = assign(rows, centroids_KD, sharding=sharding)
    farthest = np.lexsort((np.arange(len(rows)), -squared_N))[:count]
    moved_ED = rows.take(farthest)
    np.subtract.at(sums_KD, cluster_N[farthest], moved_ED)
    np.subtract.at(counts_K, cluster_N[farthest], 1)
    return moved_ED
