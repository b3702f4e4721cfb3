"""Batches of queries against scores of every docid; on one device and on eight."""

import jax
import numpy as np
import pytest

from corpora.tokens import TokenTable
from generative_retrieval import exhaustive
from generative_retrieval.batch_search import BatchSearch
from generative_retrieval.docids import NONE, Docids
from generative_retrieval.task import smallest_batch
from training.build import build
from training.mesh import Layout, data_mesh

DOCIDS = Docids(
    np.array([[1, 2, 0], [3, 0, NONE], [1, 1, 0], [4, 4, 4], [2, 0, NONE], [4, 1, 0]], np.int32), 5, "test"
)
LENGTHS = [3, 0, 20, 7, 1, 30, 5, 9, 2, 2, 4]  # the longest are cut at 16


@pytest.fixture(scope="module")
def held(make_pair):
    model = build(make_pair(bias={}))
    variables = model.init(jax.random.key(0), smallest_batch(model))
    variables = jax.tree.map(lambda leaf: 3 * leaf, variables)  # so that logits differ
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 20, sum(LENGTHS)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    return model, variables, TokenTable(tokens, np.zeros(len(tokens), np.uint8), offsets, 0)


def search_of(model, devices=1, **given):
    settings = dict(batch_size=4, length=16, beams=6, results=6) | given
    return BatchSearch(model, DOCIDS, data_mesh(jax.devices()[:devices]), Layout(), **settings)


def test_every_query_finds_what_scores_of_all_ids_say(held):
    model, variables, table = held
    scores_Qn, rows_Qn = search_of(model)(variables, table)
    batch = table.rectangle(np.arange(len(table)), 16)
    expected_QN = np.asarray(exhaustive.scores(model, variables, batch, DOCIDS.symbols_NT))
    for query, length in enumerate(LENGTHS):
        if not length:
            assert (rows_Qn[query] == -1).all()
            assert np.isneginf(scores_Qn[query]).all()
            continue
        order = np.argsort(-expected_QN[query], kind="stable")
        np.testing.assert_array_equal(rows_Qn[query], order)
        np.testing.assert_allclose(scores_Qn[query], expected_QN[query][order], rtol=1e-5)


@pytest.mark.slow
def test_another_search_is_named_by_a_config(held):
    model, variables, table = held
    named = build(dict(name="generative_retrieval.diverse.search", groups=3, penalty=2.0))
    plain, diverse = (
        search_of(model, beams=6, **given)(variables, table) for given in ({}, dict(search=named))
    )
    for query, length in enumerate(LENGTHS):
        scores = dict(zip(plain[1][query].tolist(), plain[0][query].tolist(), strict=True))
        found = [row for row in diverse[1][query].tolist() if row >= 0]
        assert len(set(found)) == len(found)
        assert bool(found) == bool(length)
        expected = [scores[row] for row in found]
        np.testing.assert_allclose(diverse[0][query][: len(found)], expected, rtol=1e-5)
    assert (plain[1] != diverse[1]).any()


@pytest.mark.slow
def test_eight_devices_find_what_one_does(held):
    model, variables, table = held
    one, eight = search_of(model)(variables, table), search_of(model, devices=8)(variables, table)
    np.testing.assert_array_equal(one[1], eight[1])
    np.testing.assert_allclose(one[0], eight[0], rtol=1e-5)


@pytest.mark.slow
def test_each_query_finds_documents_of_its_own_subset(held):
    model, variables, table = held
    live_SN = np.array([[1, 0, 1, 0, 0, 1], [0, 1, 0, 1, 0, 0]], bool)
    subset_Q = np.arange(len(table)) % 2
    scores_Qn, rows_Qn = search_of(model, devices=2)(variables, table, live_SN=live_SN, subset_Q=subset_Q)
    every = search_of(model)(variables, table)
    for query, length in enumerate(LENGTHS):
        allowed = np.flatnonzero(live_SN[subset_Q[query]]) if length else []
        kept = np.isin(every[1][query], allowed)
        np.testing.assert_array_equal(rows_Qn[query][: len(allowed)], every[1][query][kept])
        np.testing.assert_allclose(scores_Qn[query][: len(allowed)], every[0][query][kept], rtol=1e-5)
        assert (rows_Qn[query][len(allowed) :] == -1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(batch_size=0), "batch_size is 0; it must be at least 1"),
        (dict(beams=0), "beams is 0; allowed: 1 or more"),
        (dict(length_penalty=-1.0), "length_penalty is -1.0; allowed: 0 or more"),
    ],
)
def test_what_is_out_of_range_is_refused(held, settings, message):
    with pytest.raises(ValueError, match=message):
        search_of(held[0], **settings)


def test_subsets_that_do_not_fit_are_refused(held):
    model, variables, table = held
    search = search_of(model)
    with pytest.raises(ValueError, match=r"subset_Q has shape \(2,\); allowed: \(11,\)"):
        search(variables, table, live_SN=np.ones((2, 6), bool), subset_Q=np.zeros(2, int))
    with pytest.raises(ValueError, match="given without live_SN"):
        search(variables, table, subset_Q=np.zeros(11, int))
    with pytest.raises(ValueError, match="of_query has 3; allowed: 0 to 1"):
        search(variables, table, live_SN=np.ones((2, 6), bool), subset_Q=np.full(11, 3))
