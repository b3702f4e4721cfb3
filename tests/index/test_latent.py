import numpy as np
import pytest

from index import latent

TEXTS = ["red plum red", "green plum", "fast car", "fast red car car", "green tree", "old tree roof"]  # stems


def tfidf(texts, columns, idf):
    """Rows of length 1, by the formula, term by term."""
    rows = np.zeros((len(texts), len(columns)))
    for row, text in enumerate(texts):
        for word in set(text.split()) & columns.keys():
            rows[row, columns[word]] = (1 + np.log(text.split().count(word))) * idf[word]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_vectors_are_those_of_the_whole_decomposition():
    found = latent.fit(TEXTS, 3)
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
    found = latent.fit(TEXTS, 3)
    more = found.vectors(["red plum red", "unheard of", "plum zebra"])
    np.testing.assert_allclose(more[0], found.vectors(TEXTS)[0], atol=1e-6)
    np.testing.assert_array_equal(more[1], np.zeros(3))
    np.testing.assert_allclose(more[2], found.vectors(["plum"])[0], atol=1e-6)


def test_calls_agree():
    np.testing.assert_array_equal(latent.fit(TEXTS, 2).weights_VD, latent.fit(TEXTS, 2).weights_VD)


@pytest.mark.parametrize("width", [0, 6])
def test_width_out_of_range(width):
    with pytest.raises(ValueError, match=f"width is {width}; allowed: 1 to 5, below the 6 texts"):
        latent.fit(TEXTS, width)
