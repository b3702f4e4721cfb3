import numpy as np
import pytest

from generative_retrieval.docids import DocidsError
from generative_retrieval.schemes.random_codes import RandomCodes


@pytest.mark.parametrize(
    ("length", "base", "count"),
    [(3, 10, 1000), (3, 10, 600), (4, 10, 1000), (20, 30, 200)],
    ids=["every code", "most codes", "few codes", "more codes than 64 bits hold"],
)
def test_codes_are_within_their_symbols_and_by_seed(make_documents, length, base, count):
    scheme = RandomCodes(length, base)
    docids = scheme.assign(make_documents(count=count), seed=0)  # checks that all differ
    assert docids.symbols_NT.shape == (count, length)
    assert (docids.symbols_NT.min(), docids.symbols_NT.max(), docids.size) == (1, base, base + 1)
    again = scheme.assign(make_documents(count=count), seed=0)
    np.testing.assert_array_equal(again.symbols_NT, docids.symbols_NT)
    other = scheme.assign(make_documents(count=count), seed=1)
    assert (other.symbols_NT != docids.symbols_NT).any(axis=1).mean() > 0.9


@pytest.mark.parametrize(("length", "base"), [(2, 10), (3, 30)])
def test_symbols_tell_nothing_of_the_row(make_documents, length, base):
    symbols = RandomCodes(length, base).assign(make_documents(count=99), seed=0).symbols_NT
    correlation = np.corrcoef(np.arange(99), symbols[:, 0])[0, 1]
    assert abs(correlation) < 0.3  # three standard deviations


@pytest.mark.parametrize(("length", "base"), [(2, 10), (4, 10)], ids=["dense", "sparse"])
def test_later_documents_take_free_codes(make_documents, extended, length, base):
    scheme = RandomCodes(length, base)
    before = scheme.assign(make_documents(count=60), seed=1)
    extended(scheme, before, make_documents(count=40))  # with the same seed, so the same draws


def test_errors(make_documents):
    with pytest.raises(ValueError, match="length is 0"):
        RandomCodes(0, 10)
    with pytest.raises(ValueError, match="base is 1"):
        RandomCodes(2, 1)
    with pytest.raises(DocidsError, match=r"101 documents need .* allowed: length 3 or more"):
        RandomCodes(2, 10).assign(make_documents(count=101), 0)
    full = RandomCodes(2, 10).assign(make_documents(count=100), 0)
    with pytest.raises(DocidsError, match="101 documents need more than the 100"):
        RandomCodes(2, 10).extend(full, make_documents(count=1), 0)
    with pytest.raises(DocidsError, match="have 2 symbols each; allowed: length, 3"):
        RandomCodes(3, 10).extend(full, make_documents(count=1), 0)
