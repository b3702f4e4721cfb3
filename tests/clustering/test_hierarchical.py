import numpy as np
import pytest

from clustering import hierarchical

K, LEAF = 3, 5


@pytest.fixture(autouse=True)
def small_stacks(monkeypatch):
    monkeypatch.setattr(hierarchical, "_STACK", 1024)
    monkeypatch.setattr(hierarchical, "_SLOTS", (256, 1024))


def check(codes, count, k=K, leaf_size=LEAF):
    """What holds for all codes: unique, none begins another, symbols in range, counted by the tree."""
    symbols_NT, lengths_N, tree = codes
    assert symbols_NT.dtype == lengths_N.dtype == np.int32
    assert symbols_NT.shape == (count, lengths_N.max())
    written = [tuple(row[:length].tolist()) for row, length in zip(symbols_NT, lengths_N, strict=True)]
    assert len(set(written)) == count
    beginnings = {code[:length] for code in written for length in range(1, len(code))}
    assert not beginnings & set(written)
    inside = np.arange(symbols_NT.shape[1])[None] < lengths_N[:, None]
    assert (symbols_NT[~inside] == -1).all()
    assert all(max(code[:-1], default=0) < k and code[-1] < leaf_size and min(code) >= 0 for code in written)
    # Leaves are small, what is split is not, and all are counted.
    is_leaf = tree.children_IK < 0
    assert (tree.members_IK[is_leaf] <= leaf_size).all()
    assert (tree.members_IK[~is_leaf] > leaf_size).all()
    assert tree.members_IK[is_leaf].sum() == count * bool(len(tree.children_IK))
    assert sorted(tree.children_IK[~is_leaf].tolist()) == list(range(1, len(tree.children_IK)))
    return written


def own_paths(codes):
    """The codes without their last symbols."""
    symbols_NT, lengths_N, _ = codes
    last = np.arange(symbols_NT.shape[1])[None] == lengths_N[:, None] - 1
    return np.where(last, -1, symbols_NT)


def same_paths(paths, symbols_NT):
    width = max(paths.symbols_NT.shape[1], symbols_NT.shape[1])
    pad = lambda x: np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=-1)
    np.testing.assert_array_equal(pad(paths.symbols_NT), pad(symbols_NT))


def walk(tree, vector_D):
    """The oracle of `descend`, in float64."""
    path, node = [], 0 if len(tree.children_IK) else -1
    while node >= 0:
        path.append(int(np.square(vector_D - tree.centroids_IKD[node].astype(float)).sum(axis=1).argmin()))
        node, leaf = tree.children_IK[node, path[-1]], node * tree.children_IK.shape[1] + path[-1]
    return path, leaf


def test_two_pairs_of_pairs():
    # Split at 0 | 100, then the left ones, of which there are three, at 0 | 10.
    x_ND = np.array([[100.0], [0.0], [10.5], [101.0], [10.0]], np.float32)
    codes = hierarchical.fit(x_ND, 2, 2)
    written = check(codes, 5, 2, 2)
    first = codes.symbols_NT[:, 0]
    assert first[0] == first[3] != first[1] == first[2] == first[4]
    assert [written[0][1], written[3][1]] == [0, 1]  # numbered by rows
    assert codes.lengths_N.tolist() == [2, 3, 3, 2, 3]
    assert [written[2][2], written[4][2]] == [0, 1]
    np.testing.assert_allclose(sorted(codes.tree.centroids_IKD.ravel()), [0, 41 / 6, 10.25, 100.5], rtol=1e-6)


def test_codes_and_paths(mixture):
    x_ND = mixture(600)
    codes = hierarchical.fit(x_ND, K, LEAF, seed=2)
    check(codes, 600)
    assert len(codes.tree.children_IK) > 50
    paths = hierarchical.descend(codes.tree, x_ND)
    same_paths(paths, own_paths(codes))
    assert paths.lengths_N.tolist() == (codes.lengths_N - 1).tolist()
    counts = np.bincount(paths.leaf_N, minlength=codes.tree.children_IK.size)
    is_leaf = codes.tree.children_IK.ravel() < 0
    np.testing.assert_array_equal(counts[is_leaf], codes.tree.members_IK.ravel()[is_leaf])
    # Members of a cluster are numbered in the order of their rows.
    for leaf in np.unique(paths.leaf_N):
        numbers = codes.symbols_NT[np.arange(600), codes.lengths_N - 1][paths.leaf_N == leaf]
        assert numbers.tolist() == list(range(len(numbers)))
    # Clusters are of near vectors: the tree's leaves have a fraction of the spread of all.
    means = [
        x_ND[paths.leaf_N == leaf] - x_ND[paths.leaf_N == leaf].mean(axis=0) for leaf in set(paths.leaf_N)
    ]
    assert np.square(np.concatenate(means)).sum() < 0.35 * np.square(x_ND - x_ND.mean(axis=0)).sum()
    # New vectors go where the oracle goes, one or many at a time.
    new_ND = mixture(40, seed=5)
    found = hierarchical.descend(codes.tree, new_ND)
    for row in range(40):
        path, leaf = walk(codes.tree, new_ND[row])
        assert found.symbols_NT[row, : found.lengths_N[row]].tolist() == path
        assert found.leaf_N[row] == leaf
    alone = hierarchical.descend(codes.tree, new_ND[7:8])
    assert alone.symbols_NT[0].tolist() == found.symbols_NT[7, : alone.lengths_N[0]].tolist()


def test_the_same_seed_gives_the_same_codes_however_the_vectors_come(mixture, over_eight):
    x_ND = mixture(600)
    codes = hierarchical.fit(x_ND, K, LEAF, seed=2)
    for other in (
        hierarchical.fit([x_ND[:100], x_ND[100:]], K, LEAF, seed=2),
        hierarchical.fit(x_ND, K, LEAF, seed=2, sharding=over_eight),
    ):
        np.testing.assert_array_equal(other.symbols_NT, codes.symbols_NT)
    np.testing.assert_array_equal(
        hierarchical.descend(codes.tree, x_ND, sharding=over_eight).leaf_N,
        hierarchical.descend(codes.tree, x_ND).leaf_N,
    )
    assert not np.array_equal(
        hierarchical.fit(x_ND, K, LEAF, seed=3).symbols_NT[:, 0], codes.symbols_NT[:, 0]
    )


def test_large_clusters_are_split_in_blocks(mixture, monkeypatch, small_blocks):
    monkeypatch.setattr(hierarchical, "_STACK", 256)
    monkeypatch.setattr(hierarchical, "_SLOTS", (256,))
    x_ND = mixture(900)
    codes = hierarchical.fit(x_ND, K, LEAF)
    check(codes, 900)
    same_paths(hierarchical.descend(codes.tree, x_ND), own_paths(codes))


def test_equal_vectors_are_cut_by_rows():
    codes = hierarchical.fit(np.ones((20, 8), np.float32), K, LEAF)
    written = check(codes, 20)
    # 7, 7 and 6 in order, each more than 5, cut again: 3, 2 and 2.
    assert [code[0] for code in written] == [0] * 7 + [1] * 7 + [2] * 6
    assert [code[1:] for code in written[:7]] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]
    np.testing.assert_allclose(codes.tree.centroids_IKD, 1, rtol=1e-6)
    assert hierarchical.descend(codes.tree, np.ones((2, 8), np.float32)).symbols_NT.tolist() == [[0, 0]] * 2


def test_some_equal_vectors(mixture):
    x_ND = mixture(200)
    x_ND[20:120] = x_ND[20]
    codes = hierarchical.fit(x_ND, K, LEAF)
    check(codes, 200)
    rest = np.r_[:20, 120:200]
    np.testing.assert_array_equal(
        hierarchical.descend(codes.tree, x_ND).lengths_N[rest], codes.lengths_N[rest] - 1
    )


def test_a_corpus_no_larger_than_a_leaf_is_only_numbered(mixture):
    codes = hierarchical.fit(mixture(5), K, LEAF)
    check(codes, 5)
    assert codes.symbols_NT.ravel().tolist() == [0, 1, 2, 3, 4]
    paths = hierarchical.descend(codes.tree, mixture(2))
    assert (paths.symbols_NT.shape, paths.lengths_N.tolist(), paths.leaf_N.tolist()) == (
        (2, 0),
        [0, 0],
        [-1, -1],
    )


def test_leaves_of_one_spell_out_everything(mixture):
    codes = hierarchical.fit(mixture(30), K, 1)
    check(codes, 30, K, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(k=1, leaf_size=2), "k is 1; allowed: at least 2"),
        (dict(k=2, leaf_size=0), "leaf_size is 0; allowed: at least 1"),
        (dict(k=2, leaf_size=1, iterations=-1), "iterations is -1"),
        (dict(k=2, leaf_size=1, tolerance=-1), "tolerance is -1"),
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
