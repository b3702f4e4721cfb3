import numpy as np
import pytest

from generative_retrieval.docids import DocidsError, spelled
from generative_retrieval.schemes.by_position import ByPosition
from generative_retrieval.schemes.naive import Naive
from generative_retrieval.schemes.random_codes import RandomCodes
from generative_retrieval.schemes.semantic import Semantic


def test_symbols_by_hand(make_documents):
    docids = ByPosition(Naive(base=10)).assign(make_documents(count=12), seed=0)
    # Row 11 is [2, 2, END]; ten symbols a place, so the second 2 is 12, and END stays.
    assert spelled(docids.symbols_NT[11]) == [2, 12, 0]
    assert spelled(docids.symbols_NT[9]) == [10, 0]
    assert (docids.size, docids.scheme) == (31, "naive by position")


def test_positions_make_room_before_the_documents_are_seen(make_documents):
    docids = ByPosition(RandomCodes(2, 5), positions=4).assign(make_documents(count=12), seed=0)
    assert docids.size == 21
    inner = RandomCodes(2, 5).assign(make_documents(count=12), seed=0)
    np.testing.assert_array_equal(docids.symbols_NT, inner.symbols_NT + np.array([[0, 5]]))


def test_longer_ids_of_later_documents_share_the_last_position(make_documents, extended):
    scheme = ByPosition(Naive(base=2))
    before = scheme.assign(make_documents(count=2), seed=0)  # [1, END] and [2, END]: two positions
    assert before.size == 5
    after = extended(scheme, before, make_documents(count=4))
    # Row 5 is 101 in base 2: symbols 2, 1, 2; the third stands in the second position's place.
    assert spelled(after.symbols_NT[5]) == [2, 3, 4, 0]


@pytest.mark.slow
def test_it_extends_as_the_scheme_does(make_documents, extended, vectors):
    inner = Semantic(branching=3, leaf_size=4)
    scheme = ByPosition(inner, positions=6)
    assert scheme.needs_vectors
    assert not scheme.needs_tokenizer
    first, more = make_documents(vectors(20)), make_documents(vectors(9, seed=1))
    after = extended(scheme, scheme.assign(first, seed=0), more)
    expected = inner.extend(inner.assign(first, seed=0), more, seed=1)
    places = np.arange(expected.symbols_NT.shape[1]) * (inner.size - 1)
    np.testing.assert_array_equal(
        after.symbols_NT, np.where(expected.symbols_NT > 0, expected.symbols_NT + places, -1)
    )
    assert (after.collisions, after.size) == (expected.collisions, 6 * (inner.size - 1) + 1)


def test_errors(make_documents):
    with pytest.raises(ValueError, match="positions is -1"):
        ByPosition(Naive(), positions=-1)
    with pytest.raises(DocidsError, match="positions is 2; allowed: 3 or more, for ids of"):
        ByPosition(Naive(), positions=2).assign(make_documents(count=12), 0)
    plain, one = Naive().assign(make_documents(count=12), 0), make_documents(count=1)
    with pytest.raises(DocidsError, match="of the scheme 'naive'; allowed: one by position"):
        ByPosition(Naive()).extend(plain, one, 0)
    three = ByPosition(Naive()).assign(make_documents(count=12), 0)
    with pytest.raises(DocidsError, match="have 3 positions; allowed: 4"):
        ByPosition(Naive(), positions=4).extend(three, one, 0)
    with pytest.raises(DocidsError, match="'naive' with 11 symbols; allowed: 'random' with 11"):
        ByPosition(RandomCodes(2, 10)).extend(three, one, 0)
