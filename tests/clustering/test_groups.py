import jax
import numpy as np
import pytest

from clustering import groups, kmeans

fit = jax.jit(groups.fit)


@pytest.mark.slow
def test_each_group_is_clustered_by_itself(mixture):
    x_GSD = np.stack([mixture(64, seed=seed) for seed in range(4)])
    sizes_G = np.array([64, 30, 5, 0], np.int32)
    x_GSD[1, 30:] = 1e6  # what is behind a group's vectors does not count
    draws_GKL = np.random.default_rng(0).random((4, 5, 3), np.float32)
    found_GKD = np.asarray(fit(x_GSD, sizes_G, draws_GKL, 40, 0.0))
    assert np.isfinite(found_GKD).all()
    for group, size in enumerate(sizes_G[:3]):
        # The centroids have come to rest: each is the mean of its vectors.
        x_SD = x_GSD[group, :size]
        cluster_S, _ = kmeans.assign(x_SD, found_GKD[group])
        means_KD = np.stack([x_SD[cluster_S == k].mean(axis=0) for k in range(5)])
        np.testing.assert_allclose(found_GKD[group], means_KD, atol=1e-4)
    # Neighbors do not matter, nor the place in the stack.
    turned_GKD = fit(x_GSD[::-1], sizes_G[::-1], draws_GKL[::-1], 40, 0.0)
    np.testing.assert_allclose(turned_GKD[::-1], found_GKD, rtol=1e-5, atol=1e-5)


def test_lost_clusters_take_the_farthest_vectors():
    # As in test_kmeans: 9 goes to the first lost cluster, 4 to the second, and the last slot does not count.
    x_SD = np.array([[0.0], [1.0], [9.0], [2.0], [4.0], [50.0]], np.float32)
    centroids_KD = np.array([[0.0], [1000.0], [2000.0]], np.float32)
    inertia, after_KD = jax.jit(groups._iterate)(x_SD, np.arange(6) < 5, centroids_KD)
    assert float(inertia) == 1 + 81 + 4 + 16
    assert np.asarray(after_KD).ravel().tolist() == [1.0, 9.0, 4.0]
