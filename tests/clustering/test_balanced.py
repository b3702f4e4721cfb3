import numpy as np
import pytest
import scipy.optimize

from clustering import balanced, kmeans


def cheapest(x_ND, centroids_KD):
    """The oracle: the least cost of N // K or N // K + 1 vectors for each centroid, in float64."""
    squared_NK = np.square(x_ND[:, None].astype(float) - centroids_KD[None]).sum(axis=2)
    count, rest = divmod(len(x_ND), len(centroids_KD))
    height = count + (rest > 0)
    costs = np.repeat(squared_NK, height, axis=1)
    if rest:  # of the last places all but `rest` stay free: they are for rows that cost nothing there
        last = np.tile(np.arange(height) == count, len(centroids_KD))
        free = np.where(last, 0.0, 1e9)[None].repeat(len(centroids_KD) - rest, axis=0)
        costs = np.concatenate([costs, free])
    rows, columns = scipy.optimize.linear_sum_assignment(costs)
    return costs[rows, columns].sum()


def test_far_vectors_lose_most_by_their_second_choice():
    # Three are near 0, but it has room for two: 2 goes, for it loses least.
    x_ND = np.array([[2.0], [0.0], [100.0], [1.0]], np.float32)
    cluster_N, squared_N = balanced.assign(x_ND, np.array([[0.0], [100.0]]))
    assert cluster_N.tolist() == [1, 0, 1, 0]
    assert squared_N.tolist() == [98.0**2, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(("count", "k"), [(300, 5), (299, 5)])
def test_sizes_differ_by_one_and_the_cost_is_near_the_least(count, k, mixture):
    x_ND = mixture(count)
    centroids_KD = kmeans.fit(mixture(300), k).centroids_KD
    cluster_N, squared_N = balanced.assign(x_ND, centroids_KD)
    sizes_K = np.bincount(cluster_N, minlength=k)
    assert set(sizes_K) <= {count // k, count // k + 1}
    np.testing.assert_allclose(squared_N, np.square(x_ND - centroids_KD[cluster_N]).sum(axis=1), rtol=1e-5)
    best = cheapest(x_ND, centroids_KD)
    assert best * (1 - 1e-5) <= squared_N.sum() <= best * 1.03
    # Plain assignment costs far less here: the sizes do have to be made equal.
    assert kmeans.assign(x_ND, centroids_KD)[1].sum() < 0.8 * best


def test_fit(mixture):
    x_ND = mixture(300)
    found = balanced.fit(x_ND, 5, seed=1)
    assert np.bincount(found.cluster_N).tolist() == [60] * 5
    means_KD = np.stack([x_ND[found.cluster_N == k].mean(axis=0) for k in range(5)])
    np.testing.assert_allclose(found.centroids_KD, means_KD, rtol=1e-4, atol=1e-5)
    assert found.inertia == pytest.approx(np.square(x_ND - means_KD[found.cluster_N]).sum(), rel=1e-5)
    # Iterations pay, and the best of them is kept.
    inertias = [balanced.fit(x_ND, 5, seed=1, iterations=number).inertia for number in (1, 2, 4)]
    assert inertias == sorted(inertias, reverse=True)
    assert found.inertia <= inertias[-1] < inertias[0]


def test_in_blocks(mixture):
    x_ND = mixture(300)
    np.testing.assert_array_equal(
        balanced.fit([x_ND[:7], x_ND[7:]], 5).cluster_N, balanced.fit(x_ND, 5).cluster_N
    )


@pytest.mark.slow
def test_blocks_and_devices_change_nothing(mixture, over_eight, monkeypatch):
    x_ND = mixture(300)
    found = balanced.fit(x_ND, 5)
    spread = balanced.fit(x_ND, 5, sharding=over_eight)
    monkeypatch.setattr("clustering.rows._MOST", {"cpu": 256})
    for other in (balanced.fit(x_ND, 5), spread):
        np.testing.assert_array_equal(other.cluster_N, found.cluster_N)
        np.testing.assert_allclose(other.centroids_KD, found.centroids_KD, rtol=1e-5)


def test_equal_vectors():
    found = balanced.fit(np.ones((7, 1), np.float32), 3)
    assert sorted(np.bincount(found.cluster_N)) == [2, 2, 3]
    assert found.inertia == 0


def test_bad_input(mixture):
    with pytest.raises(ValueError, match="k is 5; allowed: 1 to 4"):
        balanced.fit(np.eye(4), 5)
    with pytest.raises(ValueError, match="iterations is 0"):
        balanced.fit(np.eye(4), 2, iterations=0)
    with pytest.raises(ValueError, match="centroids is 5; allowed: 1 to 4"):
        balanced.assign(np.eye(4), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="centroids have shape"):
        balanced.assign(np.eye(4), np.zeros((2, 3)))
    bad_ND = mixture(300)
    bad_ND[3, 3] = np.nan
    with pytest.raises(ValueError, match="non-finite"):
        balanced.assign(bad_ND, mixture(5))
