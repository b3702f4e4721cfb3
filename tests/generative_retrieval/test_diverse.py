"""Diverse beams against a search in Python, and against plain beams."""

import numpy as np
import pytest

from generative_retrieval import diverse, trie
from generative_retrieval.docids import NONE

V, T, MOST = 6, 4, 24


@pytest.mark.slow
def test_groups_choose_as_in_python(tables, make_ids, pad_trie, python_search, quick_jit, monkeypatch):
    monkeypatch.setattr(trie, "_TABLE", 1)
    model = tables(V, T)

    @quick_jit
    def search(built, live, seeds):
        settings = dict(beams=6, groups=3, penalty=1.5, results=6)
        return diverse.search(model.speller(seeds), built, live=live, **settings)

    changed = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        symbols_NT = make_ids(rng, MOST, V, T, closed=bool(seed % 2))
        built, there_N = trie.build(symbols_NT, V), rng.random(len(symbols_NT)) < 0.8
        found = search(pad_trie(built, MOST), built.live(there_N), np.array([seed]))
        given = (model, seed, symbols_NT, np.flatnonzero(there_N))
        expected = python_search(*given, beams=6, results=6, groups=3, penalty=1.5)
        plain = python_search(*given, beams=6, results=6)
        rows, scores = (np.asarray(x[0])[: len(expected)] for x in (found.documents_Bn, found.scores_Bn))
        assert rows.tolist() == [row for row, _ in expected]
        np.testing.assert_allclose(scores, [score for _, score in expected], rtol=1e-5)
        assert (np.asarray(found.documents_Bn[0])[len(expected) :] == NONE).all()
        # The scores are the model's own, without penalties.
        np.testing.assert_allclose(scores, model.scores([seed], symbols_NT)[0, rows], rtol=1e-5)
        changed += {row for row, _ in expected} != {row for row, _ in plain}
    assert changed > 6  # plain beams of the same number find others


def test_the_second_group_takes_another_first_symbol(tables, quick_jit):
    """Probabilities 1/4 each, so two groups of one beam would both take 1; the second is deterred to 2.

    There only 21 leads on, which is not what the first group has at that place, 11.
    """
    symbols_NT = np.array([[1, 1], [1, 2], [2, 1], [3, 3]], np.int32)
    built, model = trie.build(symbols_NT, 4), tables(4, 2, scale=0.0)
    settings = dict(beams=2, groups=2, penalty=0.1, results=3)
    found = quick_jit(lambda: diverse.search(model.speller([0]), built, **settings))()
    assert found.documents_Bn.tolist() == [[0, 2, -1]]
    np.testing.assert_allclose(found.scores_Bn, [[-2 * np.log(4)] * 2 + [-np.inf]], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(groups=3), "groups is 3; allowed: a divisor of beams, 4"),
        (dict(groups=0), "groups is 0"),
        (dict(penalty=-1.0), "penalty is -1.0; allowed: 0 or more"),
    ],
)
def test_groups_or_penalties_out_of_range_are_named(tables, settings, message):
    built = trie.build(np.array([[1], [2]], np.int32), 3)
    given = {**dict(beams=4, groups=2, penalty=1.0, results=2), **settings}
    with pytest.raises(ValueError, match=message):
        diverse.search(tables(3, 1).speller([0]), built, **given)
