import pytest

from generative_retrieval.docids import DocidsError
from generative_retrieval.schemes.atomic import Atomic
from generative_retrieval.schemes.naive import Naive


def test_each_document_has_a_symbol(make_documents):
    docids = Atomic().assign(make_documents(count=3), seed=0)
    assert docids.symbols_NT.tolist() == [[1], [2], [3]]
    assert (docids.size, docids.collisions, docids.scheme) == (4, 0.0, "atomic")


def test_later_documents_take_the_symbols_kept_for_them(make_documents, extended):
    scheme = Atomic(capacity=5)
    before = scheme.assign(make_documents(count=3), seed=0)
    assert before.size == 6
    after = extended(scheme, before, make_documents(count=2))
    assert after.symbols_NT.tolist() == [[1], [2], [3], [4], [5]]
    with pytest.raises(DocidsError, match="room for 5 documents; 6 need a capacity of at least 6"):
        scheme.extend(after, make_documents(count=1), seed=0)


def test_errors(make_documents):
    with pytest.raises(ValueError, match="capacity is -1; it must be at least 0"):
        Atomic(capacity=-1)
    with pytest.raises(DocidsError, match="room for 2 documents; 3 need"):
        Atomic(capacity=2).assign(make_documents(count=3), seed=0)
    three = Atomic().assign(make_documents(count=3), seed=0)
    with pytest.raises(DocidsError, match="room for 3 documents; 4 need a capacity of at least 4"):
        Atomic().extend(three, make_documents(count=1), seed=0)
    with pytest.raises(DocidsError, match="'naive' with 11 symbols; allowed: 'atomic' with 11"):
        Atomic(capacity=10).extend(Naive().assign(make_documents(count=3), 0), make_documents(count=1), 0)
