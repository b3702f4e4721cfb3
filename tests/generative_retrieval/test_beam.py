"""Beam search against the scores of every id."""

import jax
import numpy as np
import pytest

from generative_retrieval import beam, trie


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_as_wide_as_the_corpus_it_is_exhaustive(tables, make_ids, closed, length_penalty):
    rng = np.random.default_rng(0)
    symbols_NT = make_ids(rng, 40, 5, 4, closed=closed)
    model, seeds = tables(5, 4), np.arange(3)
    built = trie.build(symbols_NT, 5)
    live = rng.random(len(symbols_NT)) < 0.7
    count = len(symbols_NT)
    for barred in (None, built.live(live)):
        found = jax.jit(
            lambda barred: beam.search(
                model.speller(seeds),
                built,
                beams=count,
                results=count,
                live=barred,
                length_penalty=length_penalty,
            )
        )(barred)
        scores_BN = model.scores(seeds, symbols_NT) / (symbols_NT >= 0).sum(axis=1) ** length_penalty
        if barred is not None:
            scores_BN[:, ~live] = -np.inf
        order = np.argsort(-scores_BN, axis=1, kind="stable")
        best = np.take_along_axis(scores_BN, order, axis=1)
        np.testing.assert_array_equal(found.documents_Bn, np.where(np.isfinite(best), order, -1))
        np.testing.assert_allclose(found.scores_Bn, best, rtol=1e-5)


@pytest.mark.parametrize(("field", "value"), [("beams", 0), ("results", 0), ("length_penalty", -1.0)])
def test_a_number_out_of_range_is_named(tables, make_ids, field, value):
    built = trie.build(make_ids(np.random.default_rng(0), 4, 5, 3), 5)
    with pytest.raises(ValueError, match=f"{field} is {value}; allowed"):
        beam.search(tables(5, 3).speller([0]), built, **{**dict(beams=2, results=2), field: value})
