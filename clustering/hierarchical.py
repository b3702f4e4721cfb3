"""Hierarchical k-means: vectors get paths in a tree such that neighbors share the beginnings of their paths.

All vectors are split into k clusters, every cluster of more than `leaf_size` is split again, and so on (Tay
et al., 2022, "Transformer Memory as a Differentiable Search Index", algorithm 1; Wang et al., 2022, "A Neural
Corpus Indexer for Document Retrieval").

The tree is built a level at a time. Small clusters are split many at once (`groups`), large ones one after
another with their vectors in blocks (`kmeans`), so that of the whole corpus only rows and symbols are held.
A cluster that k-means cannot split, since its vectors are equal, is cut into k even runs of its rows.

Splits may be balanced (`balanced`): then all clusters of a level have the same size, or sizes that differ by
one, paths differ in length by one at most, and a cluster is split by itself, which takes longer.

Letters: N vectors, D width, K clusters of a split, I inner nodes, J inner nodes of a level, T steps of the
longest path, R rows of a step, U nodes of a step.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from tqdm import tqdm

from clustering import balanced as even
from clustering import groups, kmeans, seeding
from clustering import rows as reading
from clustering.rows import Rows, Seed

_ITERATIONS, _TOLERANCE = 25, 1e-3  # of k-means, as in `kmeans.fit`
# A cluster of more is split by itself, in blocks; smaller ones share a stack of so many rows a device.
_STACK = 1 << 14
_SLOTS = (256, 1024, 4096, _STACK)  # of a group in a stack; few sizes, for each is compiled
# Rows, and the nodes they are at, that go down a level at once: always as many, so that one program does all
# and the path of a vector does not depend on the vectors beside it.
_STEP_ROWS, _STEP_NODES = 1024, 64


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """The splits. Inner nodes are numbered level by level; the first, if there is any, is the root.

    Attributes:
      centroids_IKD: float32, of the clusters that each inner node is split into. Those of a node whose
        vectors were equal, and were cut by rows, are all the same; so are that of the first and those of the
        empty clusters where a balanced split had fewer than K vectors.
      children_IK: int32, the inner node that splits a cluster further, or -1 where none does.
    """

    centroids_IKD: np.ndarray
    children_IK: np.ndarray


class Fitted(NamedTuple):
    """The result of `fit`.

    Attributes:
      paths_NT: int32: the clusters of each vector from the root down, then -1; T is 0 where the root is not
        split.
      tree: the splits.
    """

    paths_NT: np.ndarray
    tree: Tree


def fit(
    vectors,
    k: int,
    leaf_size: int,
    *,
    balanced: bool = False,
    seed: Seed = 0,
    sharding: NamedSharding | None = None,
) -> Fitted:
    """Splits vectors into a tree, and says which way each went.

    Args:
      vectors: floating point [N, D], or a sequence of blocks, see `rows.Rows`.
      k: clusters of a split, 2 or more.
      leaf_size: members that a cluster which is not split has at most.
      balanced: clusters of a split have the same number of vectors, or numbers that differ by one.
      seed: an int, 0 or more, or several, or a key of jax.random.
      sharding: of the rows of a block over a mesh, such as `training.mesh.batch_sharding(mesh)`.

    Raises:
      ValueError: a number is out of its range, or `vectors` is malformed or not finite.
    """
    rows = Rows(vectors)
    reading.check_count("k", k, 2)
    reading.check_count("leaf_size", leaf_size)
    N, seed, split = len(rows), reading.seed_numbers(seed), _split_evenly if balanced else _split
    columns, centroids = [], [np.zeros((0, k, rows.width), np.float32)]
    children = [np.zeros((0, k), np.int32)]
    # Of the nodes to split now: their rows, those of a node together and in order, and how many each has.
    open_rows, sizes_J = (np.arange(N), np.array([N])) if leaf_size < N else (np.arange(0), np.arange(0))
    node = 0
    while len(sizes_J):
        J = len(sizes_J)
        centroids_JKD, cluster = split(rows, open_rows, sizes_J, (seed, node), k, sharding)
        child = np.repeat(np.arange(J), sizes_J) * k + cluster
        members_JK = np.bincount(child, minlength=J * k).reshape(J, k)
        columns.append(np.full(N, -1, np.int32))
        columns[-1][open_rows] = cluster

        goes_on = members_JK.ravel() > leaf_size
        next_node = node + J
        children.append(
            np.where(goes_on, next_node + np.cumsum(goes_on) - 1, -1).reshape(J, k).astype(np.int32)
        )
        centroids.append(centroids_JKD)
        by_child = np.argsort(child, kind="stable")
        open_rows = open_rows[by_child[goes_on[child[by_child]]]]
        sizes_J, node = members_JK.ravel()[goes_on], next_node
    return Fitted(_paths(columns, N), Tree(np.concatenate(centroids), np.concatenate(children)))


def descend(tree: Tree, vectors, *, sharding: NamedSharding | None = None) -> np.ndarray:
    """Finds the way of each vector, to the nearest cluster at each node, ties to the lower one.

    The vectors that the tree was built from come to where they are, but for those of nodes that were cut by
    rows, or balanced. `sharding` is that of the rows of a block over a mesh.

    Returns:
      int32 [N, T]: the clusters from the root down, then -1.

    Raises:
      ValueError: `vectors` is malformed, not finite, or not as wide as the tree's.
    """
    rows = Rows(vectors)
    width = tree.centroids_IKD.shape[2]
    if rows.width != width:
        raise ValueError(f"vectors are {rows.width} wide; allowed: {width}, the width of the tree")
    columns = []
    at_N = np.full(len(rows), 0 if len(tree.children_IK) else -1, np.int32)
    while (at_N >= 0).any():
        open_rows = np.flatnonzero(at_N >= 0)
        open_rows = open_rows[np.argsort(at_N[open_rows], kind="stable")]
        of_row = at_N[open_rows]
        cluster = _nearest_clusters(rows, open_rows, of_row, tree.centroids_IKD, sharding)
        columns.append(np.full(len(rows), -1, np.int32))
        columns[-1][open_rows] = cluster
        at_N[open_rows] = tree.children_IK[of_row, cluster]
    return _paths(columns, len(rows))


def _paths(columns: list[np.ndarray], count: int) -> np.ndarray:
    return np.stack(columns, axis=1) if columns else np.zeros((count, 0), np.int32)


def _split(rows, open_rows, sizes_J, seed_and_node, k, sharding) -> tuple[np.ndarray, np.ndarray]:
    """Returns the centroids [J, K, D] of the clusters of each node, and the cluster of each open row.

    Node j's draws come from its number.
    """
    centroids_JKD = _centroids(rows, open_rows, sizes_J, seed_and_node, k, sharding)
    of_row = np.repeat(np.arange(len(sizes_J)), sizes_J)
    cluster = _nearest_clusters(rows, open_rows, of_row, centroids_JKD, sharding)
    return centroids_JKD, _cut_equal(cluster, of_row, sizes_J, centroids_JKD)


def _split_evenly(rows, open_rows, sizes_J, seed_and_node, k, sharding) -> tuple[np.ndarray, np.ndarray]:
    """As `_split`; a node of fewer than K vectors has clusters of one, and empty ones behind them."""
    seed, node = seed_and_node
    ends_J = np.cumsum(sizes_J)
    centroids_JKD = np.empty((len(sizes_J), k, rows.width), np.float32)
    cluster = np.empty(len(open_rows), np.int64)
    bar = _progress(sizes_J)
    for j, size in enumerate(sizes_J):
        where, few = slice(ends_J[j] - size, ends_J[j]), min(k, int(size))
        found = even.fit(rows.subset(open_rows[where]), few, seed=(*seed, node + j), sharding=sharding)
        centroids_JKD[j] = found.centroids_KD[0]  # a tie goes to the lower: nothing comes to an empty one
        centroids_JKD[j, :few], cluster[where] = found.centroids_KD, found.cluster_N
        bar.update(int(size))
    bar.close()
    return centroids_JKD, cluster


def _progress(sizes_J: np.ndarray) -> tqdm:
    return tqdm(
        total=int(sizes_J.sum()), desc=f"splitting {len(sizes_J)} clusters", unit=" rows", disable=None
    )


def _centroids(rows, open_rows, sizes_J, seed_and_node, k, sharding) -> np.ndarray:
    seed, node = seed_and_node
    ends_J = np.cumsum(sizes_J)
    centroids_JKD = np.empty((len(sizes_J), k, rows.width), np.float32)
    bar = _progress(sizes_J)
    for j in np.flatnonzero(sizes_J > _STACK):
        own = rows.subset(open_rows[ends_J[j] - sizes_J[j] : ends_J[j]])
        found = kmeans.fit(
            own,
            k,
            seed=(*seed, node + int(j)),
            iterations=_ITERATIONS,
            tolerance=_TOLERANCE,
            sharding=sharding,
        )
        centroids_JKD[j] = found.centroids_KD
        bar.update(int(sizes_J[j]))
    run = reading.jitted(groups.fit, sharding)
    for fewer, slots in zip((0, *_SLOTS), _SLOTS, strict=False):
        alike = np.flatnonzero((sizes_J > fewer) & (sizes_J <= slots))
        # As many groups each time, the last ones empty, so that each size of group is compiled once.
        height = reading.parts(sharding) * (_STACK // slots)
        for start in range(0, len(alike), height):
            js = alike[start : start + height]
            counts = reading.padded(sizes_J[js].astype(np.int32), height)
            x_GSD = np.zeros((height, slots, rows.width), np.float32)
            inside_GS = np.arange(slots)[None, :] < counts[:, None]
            chosen = np.concatenate([open_rows[ends_J[j] - sizes_J[j] : ends_J[j]] for j in js])
            x_GSD[inside_GS] = rows.take(chosen)
            reading.check_finite(x_GSD)
            draws_GKL = np.stack([seeding.draws(reading.generator(seed, node + int(j)), k) for j in js])
            draws_GKL = reading.padded(draws_GKL, height)
            placed = (reading.placed(each, sharding) for each in (x_GSD, counts, draws_GKL))
            found_GKD = run(*placed, _ITERATIONS, _TOLERANCE)
            centroids_JKD[js] = np.asarray(found_GKD)[: len(js)]
            bar.update(len(chosen))
    bar.close()
    return centroids_JKD


def _nearest_clusters(rows, chosen, of_row, centroids_JKD, sharding) -> np.ndarray:
    """Returns the nearest cluster, int, of each of the chosen rows at its node; `of_row` ascends."""
    size = _STEP_ROWS * reading.parts(sharding)
    run = reading.jitted(_nearest_of_node, sharding)
    rank = np.cumsum(np.diff(of_row, prepend=of_row[:1]) > 0)  # of the row's node, among those there are
    found, start = np.empty(len(chosen), np.int64), 0
    while start < len(chosen):
        stop = min(start + size, int(np.searchsorted(rank, rank[start] + _STEP_NODES)))
        x_RD = rows.take(chosen[start:stop])
        reading.check_finite(x_RD)
        nodes = of_row[start:stop][np.diff(rank[start:stop], prepend=-1) > 0]
        local_R = (rank[start:stop] - rank[start]).astype(np.int32)
        placed = (reading.placed(reading.padded(each, size), sharding) for each in (x_RD, local_R))
        cluster_R = run(*placed, reading.padded(centroids_JKD[nodes], _STEP_NODES))
        found[start:stop] = np.asarray(cluster_R)[: stop - start]
        start = stop
    return found


def _nearest_of_node(x_RD, local_R, centroids_UKD):
    away_RKD = x_RD[:, None, :] - centroids_UKD[local_R]
    return jnp.argmin((away_RKD * away_RKD).sum(axis=2), axis=1)


def _cut_equal(cluster, of_row, sizes_J, centroids_JKD) -> np.ndarray:
    """Cuts the rows of nodes that all went to one cluster into even runs, and makes their centroids equal."""
    J, K, _ = centroids_JKD.shape
    first = np.cumsum(sizes_J) - sizes_J
    differs = cluster != np.repeat(cluster[first], sizes_J)
    equal_J = np.bincount(of_row[differs], minlength=J) == 0
    centroids_JKD[equal_J] = centroids_JKD[np.arange(J), cluster[first]][equal_J][:, None, :]
    position = np.arange(len(cluster)) - np.repeat(first, sizes_J)
    return np.where(equal_J[of_row], position * K // sizes_J[of_row], cluster)
