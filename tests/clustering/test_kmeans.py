import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustering import kmeans
from clustering.rows import Rows


def lloyd(x_ND, centroids_KD, steps):
    """The oracle, in float64: centroids after so many steps, where no cluster becomes empty."""
    for _ in range(steps):
        cluster_N = distances(x_ND, centroids_KD).argmin(axis=1)
        centroids_KD = np.stack([x_ND[cluster_N == k].mean(axis=0) for k in range(len(centroids_KD))])
    return centroids_KD


def distances(x_ND, centroids_KD):
    return np.square(np.asarray(x_ND, np.float64)[:, None] - centroids_KD[None]).sum(axis=2)


def close(a, b):
    assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_two_pairs():
    found = kmeans.fit(np.array([[0.0], [11.0], [1.0], [10.0]], np.float32), 2, seed=3)
    order = np.argsort(found.centroids_KD[:, 0])
    np.testing.assert_allclose(found.centroids_KD[order, 0], [0.5, 10.5])
    assert found.counts_K.tolist() == [2, 2]
    assert found.inertia == pytest.approx(4 * 0.25)  # four times a half, squared
    assert found.history[-1] == found.inertia


def test_steps_are_those_of_lloyd(mixture):
    x_ND = mixture(300)
    first = kmeans.fit(x_ND, 8, iterations=0)
    assert len(first.history) == 1
    close(first.inertia, distances(x_ND, first.centroids_KD).min(axis=1).sum())
    assert np.isin(first.centroids_KD.round(3), x_ND.round(3)).all()  # each is a vector
    third = kmeans.fit(x_ND, 8, iterations=3, tolerance=0)
    close(third.centroids_KD, lloyd(x_ND.astype(np.float64), first.centroids_KD, 3))
    squared_NK = distances(x_ND, third.centroids_KD)
    close(third.inertia, squared_NK.min(axis=1).sum())
    assert third.counts_K.tolist() == np.bincount(squared_NK.argmin(axis=1), minlength=8).tolist()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 3.0, 1000.0]))
def test_inertia_never_rises(seed, offset):
    generator = np.random.default_rng(seed)
    x_ND = (generator.integers(-2, 3, (100, 2)) + offset).astype(np.float32)  # 25 values: ties, lost clusters
    found = kmeans.fit(x_ND, 8, seed=seed, tolerance=0, iterations=20)
    assert (np.diff(found.history) <= 1e-5 * found.history[0]).all()
    assert found.counts_K.sum() == 100


def test_lost_clusters_take_the_farthest_vectors():
    # All are nearest to 0. The farthest, 9, goes to the first lost cluster, then 4 to the second; the mean
    # of 0, 1 and 2 is left.
    rows = Rows(np.array([[0.0], [1.0], [9.0], [2.0], [4.0]], np.float32))
    centroids_KD = np.array([[0.0], [1000.0], [2000.0]], np.float32)
    found = kmeans._lloyd(rows, None, 8, centroids_KD, 1, 0.0, None)
    assert found.centroids_KD.ravel().tolist() == [1.0, 9.0, 4.0]
    assert found.history == (1 + 81 + 4 + 16, 2.0)


def test_fewer_distinct_vectors_than_clusters():
    found = kmeans.fit(np.repeat([[1.0], [5.0]], 4, axis=0), 3)
    assert sorted(found.counts_K.tolist()) == [0, 4, 4]
    assert found.inertia == 0


def test_assign_equals_the_oracle_and_ties_go_to_the_lower(mixture):
    x_ND, centroids_KD = mixture(300), mixture(8, seed=1)
    cluster_N, squared_N = kmeans.assign(x_ND, centroids_KD)
    assert (cluster_N.dtype, squared_N.dtype) == (np.int32, np.float32)
    assert cluster_N.tolist() == distances(x_ND, centroids_KD).argmin(axis=1).tolist()
    close(squared_N, distances(x_ND, centroids_KD).min(axis=1))
    twice_KD = np.concatenate([centroids_KD, centroids_KD])
    assert kmeans.assign(x_ND, twice_KD)[0].tolist() == cluster_N.tolist()


def test_far_from_the_origin():
    # Squares of 4,000 leave no digit below 1 to float32.
    x_ND = np.array([[4000.0], [4000.25], [4001.0], [4001.25]], np.float32)
    found = kmeans.fit(x_ND, 2)
    assert found.inertia == pytest.approx(4 * 0.125**2)


def test_in_blocks_from_anywhere(mixture, small_blocks, tmp_path):
    x_ND = mixture(300)
    whole = kmeans.fit(x_ND, 8, seed=1)
    np.save(tmp_path / "vectors.npy", x_ND)
    for vectors in (np.load(tmp_path / "vectors.npy", mmap_mode="r"), [x_ND[:10], x_ND[10:200], x_ND[200:]]):
        found = kmeans.fit(vectors, 8, seed=1)
        np.testing.assert_array_equal(found.centroids_KD, whole.centroids_KD)
        assert found.history == whole.history
        np.testing.assert_array_equal(
            kmeans.assign(vectors, found.centroids_KD)[0], kmeans.assign(x_ND, whole.centroids_KD)[0]
        )


def test_blocks_and_devices_change_nothing(mixture, over_eight, monkeypatch):
    x_ND = mixture(300)
    whole = kmeans.fit(x_ND, 8, seed=1)
    spread = kmeans.fit(x_ND, 8, seed=1, sharding=over_eight)
    close(spread.centroids_KD, whole.centroids_KD)
    assert spread.counts_K.tolist() == whole.counts_K.tolist()
    assigned = kmeans.assign(x_ND, whole.centroids_KD)
    np.testing.assert_array_equal(
        kmeans.assign(x_ND, whole.centroids_KD, sharding=over_eight)[0], assigned[0]
    )
    monkeypatch.setattr("clustering.rows._MOST", {"cpu": 256})
    close(kmeans.fit(x_ND, 8, seed=1).centroids_KD, whole.centroids_KD)


def test_seeds_and_restarts(mixture):
    x_ND = mixture(300)
    once = [kmeans.fit(x_ND, 8, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(once[0].centroids_KD, once[1].centroids_KD)
    assert not np.array_equal(once[0].centroids_KD, once[2].centroids_KD)
    several = [kmeans.fit(x_ND, 8, restarts=restarts).inertia for restarts in (1, 3, 9)]
    assert several == sorted(several, reverse=True)
    alone = [kmeans.fit(x_ND, 8, seed=seed).inertia for seed in range(6)]
    assert max(alone) > 1.01 * several[-1]  # starts do differ


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(k=0), "k is 0; allowed: 1 to 4"),
        (dict(k=5), "k is 5; allowed: 1 to 4"),
        (dict(k=2, iterations=-1), "iterations is -1"),
        (dict(k=2, restarts=0), "restarts is 0"),
        (dict(k=2, tolerance=-1.0), "tolerance is -1.0"),
    ],
)
def test_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        kmeans.fit(np.eye(4), **arguments)


def test_bad_vectors_and_centroids():
    bad = np.ones((4, 1), np.float32)
    bad[2, 0] = np.nan
    with pytest.raises(ValueError, match="non-finite"):
        kmeans.fit(bad, 2)
    with pytest.raises(ValueError, match="non-finite"):
        kmeans.assign(bad, np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"shape \(2, 3\); allowed: \[clusters, 4\]"):
        kmeans.assign(np.eye(4), np.zeros((2, 3)))
