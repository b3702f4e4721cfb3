import numpy as np
import pytest

from clustering import product, residual
from generative_retrieval.docids import Docids, DocidsError, spelled
from generative_retrieval.schemes.quantized import Product, Residual

SCHEMES = [Residual(steps=2, k=3, beam=2), Product(parts=2, k=3)]


# Of the two codebooks the first tells the first number of a vector, and the second the last one.
PARTS = np.zeros((2, 3, 4), np.float32)
PARTS[:, :, 0] = [[0, 8, 16], [0, 1, 2]]
STEPS = np.zeros((2, 3, 8), np.float32)
STEPS[0, :, 0], STEPS[1, :, 4] = [0, 8, 16], [0, 1, 2]


@pytest.mark.parametrize(
    ("scheme", "books"), zip(SCHEMES, (STEPS, PARTS), strict=True), ids=["residual", "product"]
)
def test_codes_and_numbers_by_hand(scheme, books, make_documents):
    name = type(scheme).__name__.lower()
    first = Docids(np.array([[1, 3, 1]], np.int32), 4, name, 0.0, {"codebooks": books})
    vectors = np.zeros((5, 8), np.float32)
    vectors[:, 0], vectors[:, 4] = [15, 0, 1, 9, -1], [0, 2, 2, 1, 2]
    docids = scheme.extend(first, make_documents(vectors), seed=0)
    # Number c of a codebook is symbol c + 1. The fourth of a code has the number 3: digits are 1 and 2 (k = 3
    # symbols), MORE is 3, so it is the second of those with two digits.
    assert [spelled(row) for row in docids.symbols_NT] == [
        [1, 3, 1], [3, 1, 1], [1, 3, 2], [1, 3, 3, 1, 1], [2, 2, 1], [1, 3, 3, 1, 2],
    ]  # fmt: skip
    assert (docids.collisions, docids.size) == (pytest.approx(4 / 6), 4)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES, ids=["residual", "product"])
def test_later_documents_are_coded_with_the_same_codebooks(scheme, make_documents, extended, vectors):
    first, more = vectors(30), vectors(20, seed=1)
    before = scheme.assign(make_documents(first), seed=0)
    after = extended(scheme, before, make_documents(more))
    books = before.state["codebooks"]
    if isinstance(scheme, Residual):
        quantizer = residual.Residual(books, beam=2)
        np.testing.assert_array_equal(books, residual.fit(first, 2, 3, beam=2, seed=0).codebooks_MKD)
    else:
        quantizer = product.Product(books)
        np.testing.assert_array_equal(books, product.fit(first, 2, 3, seed=0).codebooks_MKC)
    codes = quantizer.encode(np.concatenate([first, more])) + 1
    np.testing.assert_array_equal(after.symbols_NT[:, :2], codes)
    seen = [tuple(code) for code in codes.tolist()]
    assert after.collisions == pytest.approx(sum(seen.count(code) > 1 for code in seen) / 50)
    with pytest.raises(DocidsError, match="vectors are 7 wide; allowed: 8"):
        scheme.extend(before, make_documents(more[:, :7]), 0)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES, ids=["residual", "product"])
def test_over_devices(scheme, make_documents, over_devices, vectors):
    over_devices(scheme, make_documents(vectors(30)))


def test_errors(make_documents, vectors):
    for field, make in {
        "steps": lambda: Residual(steps=0, k=2),
        "k": lambda: Residual(steps=1, k=1),
        "beam": lambda: Residual(steps=1, k=2, beam=0),
        "parts": lambda: Product(parts=0, k=2),
    }.items():
        with pytest.raises(ValueError, match=f"{field} is "):
            make()
    with pytest.raises(DocidsError, match="'product' needs vectors"):
        Product(2, 3).assign(make_documents(count=3), 0)
    three = Product(2, 3).assign(make_documents(vectors(30)), 0)
    one = make_documents(vectors(1))
    with pytest.raises(DocidsError, match="'product' with 4 symbols; allowed: 'residual' with 4"):
        Residual(2, 3).extend(three, one, 0)
    with pytest.raises(DocidsError, match="have 2 codebooks of 3; allowed: 4 of 3"):
        Product(4, 3).extend(three, one, 0)
