"""Generated n-grams against all those of the text, and SEAL's scores worked by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.constrained_sampling import World
from generative_retrieval import fm_index, ngrams, speller

_DOCUMENTS = [[1, 2, 3, 1, 2], [2, 3, 4], [4, 1, 2, 4, 4], [5]]


def _index(documents=_DOCUMENTS):
    return fm_index.build(np.concatenate(documents), np.cumsum([0, *map(len, documents)]))


def _all_ngrams(length, documents=_DOCUMENTS):
    return {
        tuple(document[start : start + size])
        for document in documents
        for size in range(1, length + 1)
        for start in range(len(document) - size + 1)
    }


def _world(length):
    """A model of six tokens, and the n-grams of the documents with their log-probabilities."""
    every = sorted(_all_ngrams(length))
    padded = np.asarray([[*ngram, *[-1] * (length - len(ngram))] for ngram in every], np.int32)
    rng = np.random.default_rng(0)
    logits = [rng.normal(0, 2, (6**depth, 6)).astype(np.float32) for depth in range(length)]
    world = World(padded, tuple(logits))
    made = world.speller(2)
    compiled = dataclasses.replace(made, step=jax.jit(made.step))
    return compiled, dict(zip(every, world.log_p_of_ids().tolist(), strict=True))


@pytest.mark.slow
def test_with_beams_for_all_it_finds_every_ngram():
    model, every = _world(3)
    for of_query in ngrams.generate(model, _index(), beams=40, length=3):
        assert set(of_query) == set(every)
        assert of_query == pytest.approx(every, rel=1e-5)
        assert list(of_query.values()) == sorted(of_query.values(), reverse=True)


def test_beams_are_the_best_of_each_step():
    model, every = _world(3)
    found, _ = ngrams.generate(model, _index(), beams=2, length=3)
    kept, expected = [()], set()
    for size in range(1, 4):
        grown = [n for n in every if len(n) == size and n[:-1] in kept]
        kept = sorted(grown, key=lambda n: -every[n])[:2]
        expected.update(kept)
    assert set(found) == expected
    last, _ = ngrams.generate(model, _index(), beams=2, length=3, partial=False)
    # Those of three tokens, and those behind which documents end.
    ends = {n for n in expected if len(n) < 3 and not any(m[:-1] == n for m in every)}
    assert set(last) == set(kept) | ends


def test_log_odds_by_hand():
    index = _index()  # 14 tokens; (1, 2) occurs three times, 5 once
    weights = ngrams.log_odds({(1, 2): math.log(0.5), (5,): math.log(0.01), (9,): -1.0, (2,): 0.0}, index)
    assert weights[(1, 2)] == pytest.approx(math.log((0.5 * 11 / 14) / (3 / 14 * 0.5)))
    assert weights[(5,)] == 0  # 0.01 is less than 1 / 14
    assert weights[(9,)] == 0
    assert math.isfinite(weights[(2,)])


def test_best_by_hand():
    ranking = ngrams.best({(1, 2): 1.0, (4,): 3.0, (2, 3): 2.0}, _index(), 10)
    assert ranking.documents_n.tolist() == [1, 2, 0]  # a tie of 3 between 1 and 2; 3 has none
    assert ranking.scores_n.tolist() == [3.0, 3.0, 2.0]
    assert ngrams.best({(1, 2): 1.0}, _index(), 1).documents_n.tolist() == [0]


def test_intersective_by_hand():
    weights = {(2, 3): 3.0, (1, 2): 2.0, (4,): 1.0, (5,): 0.0}
    ranking = ngrams.intersective(weights, _index(), 10, alpha=2.0, beta=0.8)
    # Document 0, 1 2 3 1 2: (2, 3) counts 9. (1, 2) overlaps it at place 0, not at 3; of its tokens one is
    # new: 4 (0.2 + 0.8 / 2) = 2.4. Document 1, 2 3 4: 9, and (4,) is new: 1. Document 2, 4 1 2 4 4: 4 + 1.
    assert dict(zip(*map(np.ndarray.tolist, ranking), strict=True)) == pytest.approx({0: 11.4, 1: 10, 2: 5})
    assert ranking.documents_n.tolist() == [0, 1, 2]
    # (2, 3) occurs twice, the others three times: they find no document, and count in those found.
    ranking = ngrams.intersective(weights, _index(), 10, rare=2)
    assert ranking.documents_n.tolist() == [0, 1]
    assert ranking.scores_n.tolist() == pytest.approx([11.4, 10])


def test_an_overlapped_ngram_does_not_count():
    ranking = ngrams.intersective({(1, 2, 3): 2.0, (2, 3): 1.0}, _index([[1, 2, 3]]), 1)
    assert ranking.scores_n.tolist() == [4.0]


def _certain(size):
    """A model that writes its last token."""

    def step(symbols_BK, depth, visible_BKM, cache):
        return jnp.zeros((*symbols_BK.shape, size)).at[:, :, -1].set(50.0), cache

    return speller.Speller(1, lambda slots: None, step)


def test_retrieves_by_what_the_model_writes():
    (ranking,) = ngrams.retrieve(_certain(6), _index(), results=2, beams=3, length=2)
    assert ranking.documents_n[0] == 3


@pytest.mark.parametrize("field", ["beams", "length"])
def test_a_number_out_of_range_is_named(field):
    with pytest.raises(ValueError, match=f"{field} is 0; allowed: 1 or more"):
        ngrams.generate(_certain(6), _index(), **{field: 0})


def test_a_model_without_the_corpus_tokens_is_refused():
    with pytest.raises(ValueError, match="the corpus has token 5; allowed: below 5"):
        ngrams.generate(_certain(5), _index(), beams=2, length=2)
