"""The groups of training examples: topics of their queries, or the collections that they are of.

A config's `batch.groups` names one of these; with `batch.group_rows` examples of a group stand together in a
batch. Topics are those of Hofstätter et al. (2021), "Efficiently Teaching an Effective Dense Retriever with
Balanced Topic Aware Sampling": k-means over the queries' vectors, once before the training.

Letters: Q queries, D width, K clusters, E examples.
"""

from collections.abc import Sequence

import numpy as np

from clustering import kmeans
from corpora.batches import Pairs
from corpora.dataset import Dataset
from dual_encoder.negatives import of_run
from index import latent as latent_semantics


def trained(
    dataset: Dataset, pairs: Pairs, *, run: str, clusters: int, smallest: int, seed: int = 0
) -> np.ndarray:
    """Topics of the queries as the query tower of another run sees them.

    Args:
      dataset: the collection.
      pairs: training examples.
      run: its run directory.
      clusters: K at first.
      smallest: examples that a topic must have; those with fewer are merged, see `merged`. At least
        `group_rows`.
      seed: of k-means.

    Returns:
      int32 [E], the topic of each example, from 0.

    Raises:
      ValueError: there are fewer queries than clusters, or fewer examples than `smallest`.
      DataError, CheckpointError, DependenceError: see dual_encoder.negatives.mined.
    """
    vectors_QD, _ = of_run(run, "groups").queries(_texts(dataset, pairs))
    return _grouped(vectors_QD, pairs, clusters, smallest, seed)


def latent(
    dataset: Dataset, pairs: Pairs, *, clusters: int, smallest: int, width: int = 128, seed: int = 0
) -> np.ndarray:
    """Topics of the queries' words, where there is no trained encoder yet.

    Args:
      width: D, of the reduced TF-IDF vectors, see `index.latent.fit`.
      dataset, pairs, clusters, smallest, seed: as for `trained`, and so is what is returned.

    Raises:
      ValueError: as `trained`, or `width` is out of its range.
    """
    texts = _texts(dataset, pairs)
    vectors_QD = latent_semantics.fit(texts, width).vectors(texts)
    return _grouped(vectors_QD, pairs, clusters, smallest, seed)


def collections(dataset: Dataset, pairs: Pairs) -> np.ndarray:
    """The collection that each example is of, where `corpora.sources.joined` made one of several.

    So batches are of one task each, and no query has negatives of another task, which are easy ones.

    Returns:
      int32 [E]; collections are numbered in the alphabetical order of their names.

    Raises:
      ValueError: a query's id names no collection.
    """
    del dataset
    for query_id in pairs.query_ids:
        if "/" not in query_id:
            raise ValueError(
                f"collections: the query {query_id!r} is of no collection; allowed: ids such as 'NAME/7', "
                "which corpora.sources.joined makes"
            )
    _, number_Q = np.unique([query_id.split("/", 1)[0] for query_id in pairs.query_ids], return_inverse=True)
    return number_Q[pairs.query_rows].astype(np.int32)


def merged(
    cluster_Q: np.ndarray, counts_Q: np.ndarray, centroids_KD: np.ndarray, smallest: int
) -> np.ndarray:
    """Joins clusters until each has enough: the smallest goes to the one whose centroid is nearest, again and
    again.

    Args:
      cluster_Q: int, of each query.
      counts_Q: int, examples of each query.
      centroids_KD: of the clusters; that of two joined ones is their mean by examples.
      smallest: examples that each is to have.

    Returns:
      int32 [Q], numbered anew from 0 in the order of the lowest cluster of each.

    Raises:
      ValueError: all together have too few.
    """
    if counts_Q.sum() < smallest:
        raise ValueError(f"smallest is {smallest}; allowed: at most the {counts_Q.sum():,} examples")
    sizes_K = np.bincount(cluster_Q, weights=counts_Q, minlength=len(centroids_KD))
    centroids_KD = np.array(centroids_KD, np.float64)
    of_K = np.arange(len(centroids_KD))
    while True:
        there = np.unique(of_K)
        least = there[np.argmin(sizes_K[there])]
        if sizes_K[least] >= smallest:
            break
        others = there[there != least]
        squared = np.square(centroids_KD[others] - centroids_KD[least]).sum(axis=1)
        near = others[np.argmin(squared)]
        total = sizes_K[least] + sizes_K[near]
        if sizes_K[least]:  # of an empty cluster the centroid says nothing
            share = sizes_K[least] / total
            centroids_KD[near] = share * centroids_KD[least] + (1 - share) * centroids_KD[near]
        sizes_K[near], sizes_K[least] = total, 0
        of_K[of_K == least] = near
    _, first_K, number_K = np.unique(of_K, return_index=True, return_inverse=True)
    renumbered = np.argsort(np.argsort(first_K))
    return renumbered[number_K][cluster_Q].astype(np.int32)


def _grouped(vectors_QD: np.ndarray, pairs: Pairs, clusters: int, smallest: int, seed: int) -> np.ndarray:
    found = kmeans.fit(vectors_QD, clusters, seed=seed)
    cluster_Q, _ = kmeans.assign(vectors_QD, found.centroids_KD)
    counts_Q = np.bincount(pairs.query_rows, minlength=len(vectors_QD))
    topic_Q = merged(cluster_Q, counts_Q, found.centroids_KD, smallest)
    topic_E = topic_Q[pairs.query_rows]
    sizes = np.bincount(topic_E)
    print(
        f"{len(sizes):,} topics of {len(vectors_QD):,} queries, {clusters - len(sizes):,} of {clusters:,} "
        f"clusters merged away; of {sizes.min():,} to {sizes.max():,} examples, {np.median(sizes):,.0f} in "
        "the middle",
        flush=True,
    )
    return topic_E


def _texts(dataset: Dataset, pairs: Pairs) -> Sequence[str]:
    return [dataset.queries[query_id] for query_id in pairs.query_ids]
