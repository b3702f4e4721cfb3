import numpy as np
import pytest
import scipy.sparse

from index import latent
from index.terms import Analyzer

WORDS = Analyzer()
TEXTS = ["red apple red", "green apple", "fast car", "fast red car car", "green tree", "old tree house"]


def tfidf(texts, columns, idf):
    """Rows of length 1, by the formula, term by term."""
    rows = np.zeros((len(texts), len(columns)))
    for row, text in enumerate(texts):
        for word in set(text.split()) & columns.keys():
            rows[row, columns[word]] = (1 + np.log(text.split().count(word))) * idf[word]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_vectors_are_those_of_the_whole_decomposition():
    found = latent.fit(TEXTS, 3, analyzer=WORDS)
    columns = found.vocabulary.columns
    idf = {word: 1 + np.log(7 / (1 + sum(word in text.split() for text in TEXTS))) for word in columns}
    x_NV = tfidf(TEXTS, columns, idf)
    directions = np.linalg.svd(x_NV)[2][:3]
    expected = x_NV @ directions.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = found.vectors(TEXTS)
    # Directions are known up to their signs.
    signs = np.sign((vectors * expected).sum(axis=0))
    np.testing.assert_allclose(vectors, expected * signs, atol=1e-5)


def test_later_texts_are_laid_along_the_same_directions():
    found = latent.fit(TEXTS, 3, analyzer=WORDS)
    more = found.vectors(["red apple red", "unheard of", "apple zebra"])
    np.testing.assert_allclose(more[0], found.vectors(TEXTS)[0], atol=1e-6)
    np.testing.assert_array_equal(more[1], np.zeros(3))
    np.testing.assert_allclose(more[2], found.vectors(["apple"])[0], atol=1e-6)


def test_seeds_and_calls_agree():
    first, second = (latent.fit(TEXTS, 2, seed=seed, analyzer=WORDS).weights_VD for seed in (0, 5))
    np.testing.assert_allclose(first, second, atol=1e-5)
    np.testing.assert_array_equal(first, latent.fit(TEXTS, 2, analyzer=WORDS).weights_VD)
    assert not scipy.sparse.issparse(first)


@pytest.mark.parametrize("width", [0, 6])
def test_width_out_of_range(width):
    with pytest.raises(ValueError, match=f"width is {width}; allowed: 1 to 5, below the 6 texts"):
        latent.fit(TEXTS, width, analyzer=WORDS)
