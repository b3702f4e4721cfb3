"""Vectors that schemes cluster by: nothing is learned of documents that were added."""

import numpy as np
import pytest

from corpora.tables import DataError
from generative_retrieval import vectors
from generative_retrieval.docids import Documents
from index import latent

TITLES = ["ship", "", "oven", "gull", "knife", "comet"]
TEXTS = ["wave salt", "wave gull tide", "bread pan", "sea tide salt", "bread oven pan", "tail star comet"]


def documents(count):
    return Documents([f"d{i}" for i in range(count)], TITLES[:count], TEXTS[:count])


def test_titles_count_as_often_as_they_are_said_to():
    found = vectors.latent(documents(6), 6, width=3, title_times=2)
    texts = [f"{title} {title} {text}" for title, text in zip(TITLES, TEXTS, strict=True)]
    np.testing.assert_allclose(found, latent.fit(texts, 3).vectors(texts), atol=1e-6)


def test_added_documents_change_no_vector():
    before = vectors.latent(documents(5), 5, width=3)
    after = vectors.latent(documents(6), 5, width=3)
    np.testing.assert_array_equal(after[:5], before)
    np.testing.assert_array_equal(after[5], 0)  # none of its words was there


def test_a_run_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"config\.docids\.vectors\.run: no run in /nowhere"):
        vectors.of_run(documents(2), 2, run="/nowhere")
