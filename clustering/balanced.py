"""k-means whose clusters have the same number of vectors, or sizes that differ by one.

The problem is that of Bradley, Bennett and Demiriz, 2000, "Constrained K-Means Clustering": Lloyd's steps,
whose assignment is the cheapest of those with given sizes, a transport problem. Here that is solved, nearly,
in two parts.

  1. A price for each cluster, from the entropic form of the problem (Cuturi, 2013, "Sinkhorn Distances:
     Lightspeed Computation of Optimal Transport"): with f_nk = softmax_k((p_k - d_nk) / t), each step sets
     p_k += t (ln(N / K) - ln sum_n f_nk), as the temperature t falls. A sample of the vectors is enough.
  2. Rounds, until none is left: each vector asks for the cluster with room that has the least d_nk - p_k; a
     cluster that more ask for than it has room takes those who would lose most by their second choice. First
     all clusters have room for N // K, then for one more. Of equal vectors the lower row goes first.

Rounds give whole vectors to clusters, exactly to size; prices that are near the right ones leave little for
them to mend. On mixtures of very unequal parts the cost was 0.4 to 1.8% above the cheapest.

Letters: N vectors, D width, K clusters, B rows of a block.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from clustering import kmeans
from clustering import rows as reading
from clustering.rows import Rows, Seed

_SAMPLE = 64  # vectors a cluster from which prices are made
_SMALLEST_SAMPLE = 1 << 14
# The temperature is halved so often from the mean squared distance of vectors and centroids, and stays until
# every cluster's share is this near, or so many steps were taken.
_HALVINGS, _MOST_STEPS, _NEAR = 10, 50, 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Balanced:
    """The result of `fit`.

    Attributes:
      centroids_KD: float32, the means of the clusters.
      cluster_N: int32, of each vector.
      inertia: sum of the squared distances of the vectors from these centroids, each to that of its cluster.
    """

    centroids_KD: np.ndarray
    cluster_N: np.ndarray
    inertia: float


def fit(
    vectors,
    k: int,
    *,
    seed: Seed = 0,
    iterations: int = 10,
    sharding: NamedSharding | None = None,
) -> Balanced:
    """Finds k clusters of N // k or N // k + 1 vectors.

    It starts from plain k-means, and keeps the best of its iterations.

    Args:
      vectors: floating point [N, D], or a sequence of blocks, see `rows.Rows`.
      k: clusters, N at most.
      seed: an int, 0 or more, or several, or a key of jax.random.
      iterations: at most so many; it stops where one changes nothing.
      sharding: of the rows of a block over a mesh.

    Raises:
      ValueError: a number is out of its range, or `vectors` is malformed or not finite.
    """
    rows = Rows(vectors)
    reading.check_count("k", k, 1, len(rows))
    reading.check_count("iterations", iterations)
    centroids_KD = kmeans.fit(rows, k, seed=seed, sharding=sharding).centroids_KD
    best = None
    for _ in range(iterations):
        cluster_N = _assign(rows, centroids_KD, sharding)
        centroids_KD = _means(rows, cluster_N, k)
        inertia = float(_squared(rows, cluster_N, centroids_KD).sum(dtype=np.float64))
        if best is not None and (cluster_N == best.cluster_N).all():
            break
        if best is None or inertia < best.inertia:
            best = Balanced(centroids_KD, cluster_N, inertia)
    return best


def assign(
    vectors, centroids_KD: np.ndarray, *, sharding: NamedSharding | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Gives the vectors to centroids, N // K or N // K + 1 to each, at little cost.

    Args:
      vectors: floating point [N, D], or a sequence of blocks.
      centroids_KD: floating point; N at most.
      sharding: of the rows of a block over a mesh.

    Returns:
      cluster_N: int32.
      squared_N: float32, squared distance of each vector from the centroid it was given to.

    Raises:
      ValueError: there are more centroids than vectors, the widths differ, or `vectors` is malformed or
        not finite.
    """
    rows = Rows(vectors)
    centroids_KD = kmeans.checked_centroids(centroids_KD, rows.width)
    reading.check_count("centroids", len(centroids_KD), 1, len(rows))
    cluster_N = _assign(rows, centroids_KD, sharding)
    return cluster_N, _squared(rows, cluster_N, centroids_KD)


def _assign(rows, centroids_KD, sharding) -> np.ndarray:
    K = len(centroids_KD)
    size = reading.block_size(len(rows), K, sharding)
    prices_K = _prices(rows, centroids_KD)
    cluster_N = np.full(len(rows), -1, np.int32)
    for room in (len(rows) // K, 1):
        _give(rows, centroids_KD, prices_K, room, cluster_N, size, sharding)
    return cluster_N


def _prices(rows, centroids_KD) -> np.ndarray:
    K = len(centroids_KD)
    sample_SD = rows.sample(max(_SAMPLE * K, _SMALLEST_SAMPLE), reading.generator(0))
    reading.check_finite(sample_SD)
    scores_SK = reading.jitted(_scores, None)(sample_SD, centroids_KD, np.zeros(K, np.float32))
    mean_D = centroids_KD.mean(axis=0)
    spread = (
        np.square(sample_SD - mean_D).sum(axis=1).mean() + np.square(centroids_KD - mean_D).sum(axis=1).mean()
    )
    return np.asarray(reading.jitted(_anneal, None)(scores_SK, spread.astype(np.float32)))


def _give(rows, centroids_KD, prices_K, room, cluster_N, size, sharding) -> None:
    """Gives up to `room` of the vectors that are left to each cluster; writes into `cluster_N`."""
    K = len(centroids_KD)
    room_K = np.full(K, room)
    run = reading.jitted(_wishes, sharding)
    while room_K.any() and len(left := np.flatnonzero(cluster_N < 0)):
        closed_K = np.where(room_K > 0, -prices_K, np.inf).astype(np.float32)
        wishes, start = (np.empty(len(left), np.int32), np.empty(len(left), np.float32)), 0
        for x_BD, count in rows.subset(left).blocks(size, sharding):
            for whole, block in zip(wishes, run(x_BD, centroids_KD, closed_K), strict=True):
                whole[start : start + count] = np.asarray(block)[:count]
            start += count
        wish, loss = wishes
        if np.isnan(loss).any():
            raise ValueError("vectors have non-finite values (NaN or infinity)")
        order = np.lexsort((left, -loss, wish))  # by cluster, the greatest loss first
        first = np.searchsorted(wish[order], np.arange(K))
        taken = order[np.arange(len(order)) - first[wish[order]] < room_K[wish[order]]]
        cluster_N[left[taken]] = wish[taken]
        room_K -= np.bincount(wish[taken], minlength=K)


def _scores(x_BD, centroids_KD, added_K):
    """Squared distances plus what is added for each cluster, up to a constant of the vector."""
    shift_D = centroids_KD.mean(axis=0)
    x_BD, centroids_KD = x_BD - shift_D[None, :], centroids_KD - shift_D[None, :]
    products_BK = jnp.matmul(x_BD, centroids_KD.T, precision=lax.Precision.HIGHEST)
    return ((centroids_KD * centroids_KD).sum(axis=1) + added_K)[None, :] - 2 * products_BK


def _anneal(scores_SK, temperature):
    """Returns prices at which each cluster gets nearly the same share of the vectors."""
    K = scores_SK.shape[1]

    def cool(number, prices_K):
        t = jnp.maximum(temperature * 0.5 ** (number + 1.0), jnp.finfo(jnp.float32).tiny)

        def step(carry):
            number, prices_K, _ = carry
            shares_K = jax.nn.softmax((prices_K[None, :] - scores_SK) / t, axis=1).mean(axis=0)
            # No step is taken all the way to a cluster that seems to have nothing.
            away_K = jnp.log(jnp.maximum(shares_K * K, 1e-6))
            return number + 1, prices_K - t * away_K, jnp.abs(away_K).max()

        go_on = lambda carry: (carry[0] < _MOST_STEPS) & (carry[2] > _NEAR)
        return lax.while_loop(go_on, step, (0, prices_K, jnp.float32(jnp.inf)))[1]

    return lax.fori_loop(0, _HALVINGS, cool, jnp.zeros(K))


def _wishes(x_BD, centroids_KD, closed_K):
    """Returns the cheapest cluster of each vector, and by how much the second is dearer (inf if none)."""
    scores_BK = _scores(x_BD, centroids_KD, closed_K)
    wish_B = jnp.argmin(scores_BK, axis=1).astype(jnp.int32)
    is_wish_BK = wish_B[:, None] == jnp.arange(len(centroids_KD))[None, :]
    second_B = jnp.where(is_wish_BK, jnp.inf, scores_BK).min(axis=1)
    return wish_B, second_B - scores_BK.min(axis=1)


def _chunks(rows: Rows):
    size = reading.block_size(len(rows), rows.width, None)
    for start in range(0, len(rows), size):
        yield slice(start, start + size), rows.read(start, start + size)


def _means(rows, cluster_N, k) -> np.ndarray:
    sums_KD = np.zeros((k, rows.width))
    for where, x_nD in _chunks(rows):
        by_cluster = np.argsort(cluster_N[where], kind="stable")
        present, first = np.unique(cluster_N[where][by_cluster], return_index=True)
        sums_KD[present] += np.add.reduceat(x_nD[by_cluster], first, axis=0, dtype=np.float64)
    return (sums_KD / np.bincount(cluster_N, minlength=k)[:, None]).astype(np.float32)


def _squared(rows, cluster_N, centroids_KD) -> np.ndarray:
    return np.concatenate(
        [np.square(x_nD - centroids_KD[cluster_N[where]]).sum(axis=1) for where, x_nD in _chunks(rows)]
    )
