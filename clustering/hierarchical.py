"""Hierarchical k-means: documents get codes such that neighbors share the beginnings of their codes.

All vectors are split into k clusters, every cluster of more than `leaf_size` is split again, and so on; the
members of a cluster that is not split are numbered. A code is the path of clusters and, at the end, the
number (Tay et al., 2022, "Transformer Memory as a Differentiable Search Index", algorithm 1; Wang et al.,
2022, "A Neural Corpus Indexer for Document Retrieval"). Members are numbered in the order of their rows.

The tree is built a level at a time. Small clusters are split many at once (`groups`), large ones one after
another with their vectors in blocks (`kmeans`), so that of the whole corpus only rows and symbols are held.
A cluster that k-means cannot split, since its vectors are equal, is cut into k even runs of its rows.

Letters: N vectors, D width, K clusters of a split, I inner nodes, J inner nodes of a level, T symbols of the
longest code, R rows of a step, U nodes of a step.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from tqdm import tqdm

from clustering import groups, kmeans, seeding
from clustering import rows as reading
from clustering.rows import Rows, Seed

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
        vectors were equal, and were cut by rows, are all the same.
      children_IK: int32, the inner node that splits a cluster further, or -1 where none does.
      members_IK: int32, how many vectors each cluster had when the tree was built.
      leaf_size: clusters of more were split.
    """

    centroids_IKD: np.ndarray
    children_IK: np.ndarray
    members_IK: np.ndarray
    leaf_size: int


class Codes(NamedTuple):
    """The result of `fit`.

    Attributes:
      symbols_NT: int32: the path, then the number within the last cluster, then -1.
      lengths_N: int32, symbols of each code, 1 or more.
      tree: the splits.
    """

    symbols_NT: np.ndarray
    lengths_N: np.ndarray
    tree: Tree


class Paths(NamedTuple):
    """The result of `descend`.

    Attributes:
      symbols_NT: int32: the clusters from the root down, then -1.
      lengths_N: int32, steps of each path; 0 where the root is not split.
      leaf_N: int32, the last cluster: inner node * K + cluster, a place in `tree.members_IK.ravel()`; -1
        where the root is not split.
    """

    symbols_NT: np.ndarray
    lengths_N: np.ndarray
    leaf_N: np.ndarray


def fit(
    vectors,
    k: int,
    leaf_size: int,
    *,
    seed: Seed = 0,
    iterations: int = 25,
    tolerance: float = 1e-3,
    sharding: NamedSharding | None = None,
) -> Codes:
    """Splits vectors into a tree and gives each its code; all codes differ, and none begins another.

    Symbols of paths are below k, numbers below `leaf_size`.

    Args:
      vectors: floating point [N, D], or a sequence of blocks, see `rows.Rows`.
      k: clusters of a split, 2 or more.
      leaf_size: members that a cluster which is not split has at most.
      seed: an int, 0 or more, or several, or a key of jax.random.
      iterations, tolerance: of k-means, as in `kmeans.fit`.
      sharding: of the rows of a block over a mesh, such as `training.mesh.batch_sharding(mesh)`.

    Raises:
      ValueError: a number is out of its range, or `vectors` is malformed or not finite.
    """
    rows = Rows(vectors)
    reading.check_count("k", k, 2)
    reading.check_count("leaf_size", leaf_size)
    reading.check_count("iterations", iterations, 0)
    reading.check_count("tolerance", tolerance, 0)
    N, seed = len(rows), reading.numbers(seed)
    leaf_N, columns = np.full(N, -1, np.int32), []
    centroids, children, members = (
        [np.zeros((0, k, rows.width), np.float32)],
        [np.zeros((0, k), np.int32)],
        [],
    )
    # Of the nodes to split now: their rows, those of a node together and in order, and how many each has.
    open_rows, sizes_J = (np.arange(N), np.array([N])) if leaf_size < N else (np.arange(0), np.arange(0))
    node = 0
    while len(sizes_J):
        J = len(sizes_J)
        centroids_JKD = _split(rows, open_rows, sizes_J, (seed, node), k, iterations, tolerance, sharding)
        of_row = np.repeat(np.arange(J), sizes_J)
        cluster = _nearest_clusters(rows, open_rows, of_row, centroids_JKD, sharding)
        cluster = _cut_equal(cluster, of_row, sizes_J, centroids_JKD)
        child = of_row * k + cluster
        members_JK = np.bincount(child, minlength=J * k).reshape(J, k)
        columns.append(np.full(N, -1, np.int32))
        columns[-1][open_rows] = cluster
        leaf_N[open_rows] = node * k + child

        goes_on = members_JK.ravel() > leaf_size
        next_node = node + J
        children.append(
            np.where(goes_on, next_node + np.cumsum(goes_on) - 1, -1).reshape(J, k).astype(np.int32)
        )
        centroids.append(centroids_JKD)
        members.append(members_JK.astype(np.int32))
        by_child = np.argsort(child, kind="stable")
        open_rows = open_rows[by_child[goes_on[child[by_child]]]]
        sizes_J, node = members_JK.ravel()[goes_on], next_node
    tree = Tree(
        np.concatenate(centroids),
        np.concatenate(children),
        np.concatenate([children[0], *members]),
        leaf_size,
    )
    return _codes(columns, leaf_N, tree)


def descend(tree: Tree, vectors, *, sharding: NamedSharding | None = None) -> Paths:
    """Finds the way of each vector, to the nearest cluster at each node, ties to the lower one.

    The vectors that the tree was built from come to where they are, but for those of nodes that were cut by
    rows. `sharding` is that of the rows of a block over a mesh.

    Raises:
      ValueError: `vectors` is malformed, not finite, or not as wide as the tree's.
    """
    rows = Rows(vectors)
    _, K, width = tree.centroids_IKD.shape
    if rows.width != width:
        raise ValueError(f"vectors are {rows.width} wide; allowed: {width}, the width of the tree")
    leaf_N, columns = np.full(len(rows), -1, np.int32), []
    at_N = np.full(len(rows), 0 if len(tree.children_IK) else -1, np.int32)
    while (at_N >= 0).any():
        open_rows = np.flatnonzero(at_N >= 0)
        open_rows = open_rows[np.argsort(at_N[open_rows], kind="stable")]
        of_row = at_N[open_rows]
        cluster = _nearest_clusters(rows, open_rows, of_row, tree.centroids_IKD, sharding)
        columns.append(np.full(len(rows), -1, np.int32))
        columns[-1][open_rows] = cluster
        leaf_N[open_rows] = of_row * K + cluster
        at_N[open_rows] = tree.children_IK[of_row, cluster]
    symbols_NT = np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0), np.int32)
    return Paths(symbols_NT, (symbols_NT >= 0).sum(axis=1, dtype=np.int32), leaf_N)


def _codes(columns: list[np.ndarray], leaf_N: np.ndarray, tree: Tree) -> Codes:
    """Writes behind each path the number of the row among those of its cluster."""
    N = len(leaf_N)
    symbols_NT = np.stack([*columns, np.full(N, -1, np.int32)], axis=1)
    steps_N = (symbols_NT >= 0).sum(axis=1, dtype=np.int32)
    by_leaf = np.argsort(leaf_N, kind="stable")
    first = np.flatnonzero(np.diff(leaf_N[by_leaf], prepend=-2))
    numbers = np.arange(N) - np.repeat(first, np.diff(first, append=N))
    symbols_NT[by_leaf, steps_N[by_leaf]] = numbers
    return Codes(symbols_NT, steps_N + 1, tree)


def _split(rows, open_rows, sizes_J, seed_and_node, k, iterations, tolerance, sharding) -> np.ndarray:
    """Returns the centroids [J, K, D] of the clusters of each node; node j's draws come from its number."""
    seed, node = seed_and_node
    ends_J = np.cumsum(sizes_J)
    centroids_JKD = np.empty((len(sizes_J), k, rows.width), np.float32)
    bar = tqdm(
        total=int(sizes_J.sum()), desc=f"splitting {len(sizes_J)} clusters", unit=" rows", disable=None
    )
    for j in np.flatnonzero(sizes_J > _STACK):
        own = rows.subset(open_rows[ends_J[j] - sizes_J[j] : ends_J[j]])
        found = kmeans.fit(
            own, k, seed=(*seed, node + int(j)), iterations=iterations, tolerance=tolerance, sharding=sharding
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
            found_GKD = run(*placed, iterations, tolerance)
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
