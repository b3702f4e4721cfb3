import numpy as np
import pytest

from clustering import hierarchical
from generative_retrieval.docids import DocidsError, spelled
from generative_retrieval.schemes.semantic import Semantic, paths

SCHEME = Semantic(branching=3, leaf_size=4)
BALANCED = Semantic(branching=3, leaf_size=4, balanced=True)


@pytest.fixture(scope="module")
def blobs():
    """Float32 [40, 8] around nine centers."""
    rng = np.random.default_rng(0)
    centers = 4 * rng.normal(size=(9, 8))
    return (centers[np.arange(40) % 9] + rng.normal(size=(40, 8))).astype(np.float32)


def test_ids_by_hand(make_documents):
    # Far groups of three, two and one: clusters are told by the first number, members numbered by row.
    vectors = np.zeros((6, 8), np.float32)
    vectors[:, 0] = [100, -100, 101, 0, -101, 99]
    docids = SCHEME.assign(make_documents(vectors), seed=0)
    ids = docids.symbols_NT
    right, left, middle = ids[0, 0], ids[1, 0], ids[3, 0]
    assert {right, left, middle} == {1, 2, 3}
    assert ids.tolist() == [[right, 1], [left, 1], [right, 2], [middle, 1], [left, 2], [right, 3]]
    # One is alone in its cluster; there are END, four numbers and MORE.
    assert (docids.collisions, docids.size) == (pytest.approx(5 / 6), 6)


@pytest.mark.parametrize("scheme", [SCHEME, BALANCED], ids=["plain", "balanced"])
def test_ids_are_the_paths_of_the_clustering_and_numbers(scheme, make_documents, blobs):
    docids = scheme.assign(make_documents(blobs), seed=3)
    found = hierarchical.fit(blobs, 3, 4, balanced=scheme.balanced, seed=3)
    places = [spelled(row) for row in found.paths_NT]
    for row, place in enumerate(places):
        number = places[:row].count(place)  # below leaf_size, so that one symbol says it
        assert spelled(docids.symbols_NT[row]) == [symbol + 1 for symbol in [*place, number]]
    trimmed = paths(docids.symbols_NT, found.tree)
    assert [(path[path > 0] - 1).tolist() for path in trimmed] == places
    assert docids.collisions == pytest.approx(sum(places.count(place) > 1 for place in places) / 40)
    assert docids.size == 6
    again = scheme.assign(make_documents(blobs), seed=3)
    np.testing.assert_array_equal(again.symbols_NT, docids.symbols_NT)


def test_later_documents_go_down_the_same_tree_and_overfull_leaves_have_room(make_documents, extended, blobs):
    before = SCHEME.assign(make_documents(blobs), seed=0)
    # Six copies of row 0 come to where row 0 is; its leaf had four documents at most.
    copies = np.repeat(blobs[:1], 6, axis=0)
    after = extended(SCHEME, before, make_documents(copies))
    path = spelled(before.symbols_NT[0])[:-1]
    leaf = [row for row in range(46) if spelled(after.symbols_NT[row])[: len(path)] == path]
    assert leaf[-6:] == list(range(40, 46))
    for number, row in enumerate(leaf):
        assert spelled(after.symbols_NT[row])[len(path) :] == (
            [number + 1] if number < 4 else [5, (number - 4) // 4 + 1, (number - 4) % 4 + 1]
        )
    # In two steps as in one.
    half = SCHEME.extend(before, make_documents(copies[:2]), seed=0)
    both = SCHEME.extend(half, make_documents(copies[2:]), seed=0)
    np.testing.assert_array_equal(both.symbols_NT, after.symbols_NT)
    np.testing.assert_array_equal(
        SCHEME.extend(before, make_documents(blobs[:0]), 0).symbols_NT, before.symbols_NT
    )


def test_balanced_ids_have_one_length_until_more_come(make_documents, extended, blobs):
    before = BALANCED.assign(make_documents(blobs[:36]), seed=0)
    # 36 are three twelves, nine fours.
    assert before.symbols_NT.shape == (36, 3)
    assert (np.bincount(before.symbols_NT[:, :2] @ [3, 1] - 4) == 4).all()
    extended(BALANCED, before, make_documents(blobs[36:]))
    with pytest.raises(DocidsError, match="scheme 'balanced semantic' with 6 symbols; allowed: 'semantic'"):
        SCHEME.extend(before, make_documents(blobs[36:]), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [SCHEME, BALANCED], ids=["plain", "balanced"])
def test_over_devices(scheme, make_documents, over_devices, blobs):
    over_devices(scheme, make_documents(blobs))


def test_a_few_documents_are_one_leaf(make_documents, extended, blobs):
    before = SCHEME.assign(make_documents(blobs[:3]), seed=0)
    assert before.symbols_NT.tolist() == [[1], [2], [3]]
    after = extended(SCHEME, before, make_documents(blobs[3:5]))
    assert [spelled(row) for row in after.symbols_NT[3:]] == [[4], [5, 1, 1]]


def test_errors(make_documents, blobs):
    with pytest.raises(ValueError, match="branching is 1; it must be at least 2"):
        Semantic(branching=1)
    with pytest.raises(ValueError, match="leaf_size is 0; it must be at least 1"):
        Semantic(leaf_size=0)
    with pytest.raises(DocidsError, match="'semantic' needs vectors of the documents; there are none"):
        SCHEME.assign(make_documents(count=3), seed=0)
    with pytest.raises(DocidsError, match=r"vectors are \[3, 8\]; allowed: \[40, width\]"):
        SCHEME.assign(make_documents(blobs[:3], count=40), seed=0)
    docids = SCHEME.assign(make_documents(blobs[:3]), seed=0)
    with pytest.raises(DocidsError, match="vectors are 7 wide; allowed: 8"):
        SCHEME.extend(docids, make_documents(blobs[:3, :7]), seed=0)
    with pytest.raises(DocidsError, match="has branching 3 and leaf_size 4; allowed: 5 and 4"):
        Semantic(branching=5, leaf_size=4).extend(docids, make_documents(blobs[:3]), seed=0)
