"""Topics of queries: clusters of their vectors, the small ones merged."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.batches import Pairs
from dual_encoder import topics


def test_the_smallest_cluster_joins_the_nearest_until_all_have_enough():
    # Clusters 0 to 3 on a line at 0, 10, 12 and 40, with 5, 1, 2 and 4 examples; at least 3 are wanted.
    cluster = np.array([0, 1, 2, 3])
    counts = np.array([5, 1, 2, 4])
    centroids = np.array([[0.0], [10.0], [12.0], [40.0]])
    np.testing.assert_array_equal(topics.merged(cluster, counts, centroids, 3), [0, 1, 1, 2])
    # At least 4: the joined two, 3 at (10 + 24) / 3 = 11.3, are nearer to 0 than to 40.
    np.testing.assert_array_equal(topics.merged(cluster, counts, centroids, 4), [0, 0, 0, 1])
    np.testing.assert_array_equal(topics.merged(cluster, counts, centroids, 12), [0, 0, 0, 0])
    with pytest.raises(ValueError, match="smallest is 13; allowed: at most the 12 examples"):
        topics.merged(cluster, counts, centroids, 13)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 12), st.integers(0, 9))
def test_every_group_has_enough_and_no_cluster_is_split(clusters, queries, smallest, seed):
    rng = np.random.default_rng(seed)
    cluster, counts = rng.integers(0, clusters, queries), rng.integers(1, 4, queries)
    if counts.sum() < smallest:
        return
    found = topics.merged(cluster, counts, rng.normal(size=(clusters, 3)), smallest)
    sizes = np.bincount(found, weights=counts)
    assert sizes.min() >= smallest
    for number in range(clusters):
        assert len(set(found[cluster == number])) <= 1


QUERIES = [f"{a} {b}" for a in ("heart", "lung") for b in ("pain", "attack", "drug", "test", "risk", "care")]


@pytest.mark.parametrize("how", ["latent", "trained"])
def test_an_examples_topic_is_that_of_its_query(how, monkeypatch, capsys):
    dataset = SimpleNamespace(queries={f"q{n}": text for n, text in enumerate(QUERIES)})
    rows = np.repeat(np.arange(12), 2)  # of each query two examples
    pairs = Pairs(rows, np.zeros(24, int), np.zeros((12, 2), int), [f"q{n}" for n in range(12)])
    if how == "latent":
        found = topics.latent(dataset, pairs, clusters=2, smallest=12, width=2)
    else:
        side = np.array([[text.startswith("heart"), 1.0] for text in QUERIES], np.float32)
        opened = SimpleNamespace(queries=lambda texts: (side, np.arange(12)))
        monkeypatch.setattr(topics, "of_run", lambda run, field: opened)
        found = topics.trained(dataset, pairs, run="there", clusters=2, smallest=12)
    assert found.dtype == np.int32
    assert len(set(found[:12])) == len(set(found[12:])) == 1
    assert found[0] != found[12]
    assert (
        "2 topics of 12 queries, 0 of 2 clusters merged away; of 12 to 12 examples" in capsys.readouterr().out
    )
