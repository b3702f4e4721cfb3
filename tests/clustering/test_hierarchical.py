import numpy as np
import pytest

from clustering import hierarchical

K, LEAF = 3, 5


@pytest.fixture(autouse=True)
def small_stacks(monkeypatch):
    monkeypatch.setattr(hierarchical, "_STACK", 1024)
    monkeypatch.setattr(hierarchical, "_SLOTS", (256, 1024))


def check(found, count, k=K, leaf_size=LEAF):
    """What holds for all paths and their tree; returns the paths, and the sizes of the last clusters."""
    paths_NT, tree = found
    assert paths_NT.dtype == tree.children_IK.dtype == np.int32
    assert len(paths_NT) == count
    inner = tree.children_IK[tree.children_IK >= 0]
    assert sorted(inner.tolist()) == list(range(1, len(tree.children_IK)))
    members = {(): count}
    written = [tuple(row[row >= 0].tolist()) for row in paths_NT]
    for row, path in zip(paths_NT, written, strict=True):
        assert (row[: len(path)] >= 0).all()  # -1 is behind a path alone
        assert max(path, default=0) < k
        for end in range(1, len(path) + 1):
            members[path[:end]] = members.get(path[:end], 0) + 1
    # Each path ends at a leaf of the tree. Leaves are small, what is split is not.
    for path in set(written):
        node = 0 if len(tree.children_IK) else -1
        for depth, symbol in enumerate(path):
            assert node >= 0
            assert members[path[:depth]] > leaf_size
            node = tree.children_IK[node, symbol]
        assert node == -1
        assert members[path] <= leaf_size
    return written, [members[path] for path in sorted(set(written))]


def same_paths(one_NT, other_NT):
    width = max(one_NT.shape[1], other_NT.shape[1])
    pad = lambda x: np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=-1)
    np.testing.assert_array_equal(pad(one_NT), pad(other_NT))


def walk(tree, vector_D):
    """The oracle of `descend`, in float64."""
    path, node = [], 0 if len(tree.children_IK) else -1
    while node >= 0:
        path.append(int(np.square(vector_D - tree.centroids_IKD[node].astype(float)).sum(axis=1).argmin()))
        node = tree.children_IK[node, path[-1]]
    return path


def spread(x_ND, written):
    """The squared distances of vectors from the means of their last clusters, as a share of those of one."""
    groups = [x_ND[[path == leaf for path in written]] for leaf in set(written)]
    within = sum(np.square(x_nD - x_nD.mean(axis=0)).sum() for x_nD in groups)
    return within / np.square(x_ND - x_ND.mean(axis=0)).sum()


def test_two_pairs_of_pairs():
    # Split at 0 | 100, then the left ones, of which there are three, at 0 | 10.
    x_ND = np.array([[100.0], [0.0], [10.5], [101.0], [10.0]], np.float32)
    found = hierarchical.fit(x_ND, 2, 2)
    written, _ = check(found, 5, 2, 2)
    assert written[0] == written[3]
    assert written[2] == written[4] != written[1]
    assert written[0][0] != written[1][0] == written[2][0]
    assert [len(path) for path in written] == [1, 2, 2, 1, 2]
    np.testing.assert_allclose(sorted(found.tree.centroids_IKD.ravel()), [0, 41 / 6, 10.25, 100.5], rtol=1e-6)


def test_fit_and_descend(mixture):
    x_ND = mixture(600)
    found = hierarchical.fit(x_ND, K, LEAF, seed=2)
    written, _ = check(found, 600)
    assert len(found.tree.children_IK) > 50
    same_paths(hierarchical.descend(found.tree, x_ND), found.paths_NT)
    # Clusters are of near vectors: the tree's leaves have a fraction of the spread of all.
    assert spread(x_ND, written) < 0.35
    # New vectors go where the oracle goes, one or many at a time.
    new_ND = mixture(40, seed=5)
    paths_NT = hierarchical.descend(found.tree, new_ND)
    for row in range(40):
        assert [symbol for symbol in paths_NT[row].tolist() if symbol >= 0] == walk(found.tree, new_ND[row])
    same_paths(hierarchical.descend(found.tree, new_ND[7:8]), paths_NT[7:8])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_paths_however_the_vectors_come(mixture, over_eight):
    x_ND = mixture(600)
    found = hierarchical.fit(x_ND, K, LEAF, seed=2)
    for other in (
        hierarchical.fit([x_ND[:100], x_ND[100:]], K, LEAF, seed=2),
        hierarchical.fit(x_ND, K, LEAF, seed=2, sharding=over_eight),
    ):
        np.testing.assert_array_equal(other.paths_NT, found.paths_NT)
    np.testing.assert_array_equal(
        hierarchical.descend(found.tree, x_ND, sharding=over_eight), hierarchical.descend(found.tree, x_ND)
    )
    other = hierarchical.fit(x_ND, K, LEAF, seed=3)
    assert not np.array_equal(other.paths_NT[:, 0], found.paths_NT[:, 0])


@pytest.mark.slow
def test_large_clusters_are_split_in_blocks(mixture, monkeypatch, small_blocks):
    monkeypatch.setattr(hierarchical, "_STACK", 256)
    monkeypatch.setattr(hierarchical, "_SLOTS", (256,))
    x_ND = mixture(900)
    found = hierarchical.fit(x_ND, K, LEAF)
    check(found, 900)
    same_paths(hierarchical.descend(found.tree, x_ND), found.paths_NT)


def test_equal_vectors_are_cut_by_rows():
    found = hierarchical.fit(np.ones((20, 8), np.float32), K, LEAF)
    written, _ = check(found, 20)
    # 7, 7 and 6 in order, each more than 5, cut again: 3, 2 and 2.
    assert [path[0] for path in written] == [0] * 7 + [1] * 7 + [2] * 6
    assert [path[1] for path in written[:7]] == [0, 0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(found.tree.centroids_IKD, 1, rtol=1e-6)
    assert hierarchical.descend(found.tree, np.ones((2, 8), np.float32)).tolist() == [[0, 0]] * 2


def test_some_equal_vectors(mixture):
    x_ND = mixture(200)
    x_ND[20:120] = x_ND[20]
    found = hierarchical.fit(x_ND, K, LEAF)
    check(found, 200)
    rest = np.r_[:20, 120:200]
    same_paths(hierarchical.descend(found.tree, x_ND)[rest], found.paths_NT[rest])


@pytest.mark.parametrize("balanced", [False, True])
def test_a_corpus_no_larger_than_a_leaf_is_not_split(balanced, mixture):
    found = hierarchical.fit(mixture(5), K, LEAF, balanced=balanced)
    check(found, 5)
    assert found.paths_NT.shape == hierarchical.descend(found.tree, mixture(5)).shape == (5, 0)


def test_leaves_of_one_tell_all_apart(mixture):
    written, _ = check(hierarchical.fit(mixture(30), K, 1), 30, K, 1)
    assert len(set(written)) == 30


def test_balanced_splits(mixture):
    x_ND = mixture(29)
    found = hierarchical.fit(x_ND, K, LEAF, balanced=True)
    written, sizes = check(found, 29)
    # 10, 10 and 9; those again into three.
    assert {len(path) for path in written} == {2}
    assert sorted(sizes) == [3] * 7 + [4] * 2
    # Near vectors are together still.
    assert spread(x_ND, written) < 0.35
    again = hierarchical.fit([x_ND[:7], x_ND[7:]], K, LEAF, balanced=True)
    np.testing.assert_array_equal(again.paths_NT, found.paths_NT)
    new_ND = mixture(10, seed=5)
    assert hierarchical.descend(found.tree, new_ND).tolist() == [walk(found.tree, x_D) for x_D in new_ND]


def test_balanced_splits_of_few_vectors_leave_clusters_empty(mixture):
    x_ND = mixture(4)
    found = hierarchical.fit(x_ND, 6, 2, balanced=True)
    check(found, 4, 6, 2)
    assert sorted(found.paths_NT[:, 0].tolist()) == [0, 1, 2, 3]
    # Nothing comes to an empty one: each is where the first is.
    assert hierarchical.descend(found.tree, x_ND).max() == 3


@pytest.mark.slow
def test_balanced_splits_over_devices(mixture, over_eight):
    x_ND = mixture(100)
    found, other = (
        hierarchical.fit(x_ND, K, LEAF, balanced=True, sharding=sharding) for sharding in (None, over_eight)
    )
    np.testing.assert_array_equal(other.paths_NT, found.paths_NT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(k=1, leaf_size=2), "k is 1; allowed: at least 2"),
        (dict(k=2, leaf_size=0), "leaf_size is 0; allowed: at least 1"),
    ],
)
def test_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        hierarchical.fit(np.eye(4), **arguments)


def test_bad_vectors(mixture):
    bad_ND = mixture(20)
    bad_ND[3, 3] = np.inf
    with pytest.raises(ValueError, match="non-finite"):
        hierarchical.fit(bad_ND, K, LEAF)
    tree = hierarchical.fit(mixture(20), K, LEAF).tree
    with pytest.raises(ValueError, match="non-finite"):
        hierarchical.descend(tree, bad_ND)
    with pytest.raises(ValueError, match="7 wide; allowed: 8"):
        hierarchical.descend(tree, bad_ND[:, :7])
