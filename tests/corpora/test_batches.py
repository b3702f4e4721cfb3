"""The batch of a step is a function of seed and step, whatever the number of processes and restarts."""

from types import SimpleNamespace

import numpy as np
import pytest

from corpora import batches, tokenizer
from corpora.tables import DataError, Document
from corpora.tokens import TextSettings

QRELS = {"q1": {"d0": 1, "d2": 1}, "q2": {"d1": 1, "d0": 0}, "q3": {"d3": 0}, "q4": {"d3": 2}}


@pytest.fixture(scope="module")
def data():
    split = {"train": QRELS, "nothing": {"q3": {"d3": 0}}}
    return SimpleNamespace(name="toy", doc_ids=["d0", "d1", "d2", "d3"], split=split.__getitem__)


@pytest.fixture(scope="module")
def make_batch(data):
    pairs = batches.training_pairs(data, "train")
    words = tokenizer.train_wordpiece(["alpha beta gamma delta"] * 5, vocab_size=100)
    settings = TextSettings(query_length=2, document_length=3)
    queries = settings.queries(words, ["alpha", "beta", "gamma"])
    documents = settings.documents(
        words,
        [Document(i, "", t) for i, t in zip(data.doc_ids, ["alpha", "beta", "gamma", "delta"], strict=True)],
    )

    def make(**kwargs):
        return batches.contrastive(pairs, queries, documents, query_length=2, document_length=3, **kwargs)

    return make


def test_pairs_by_hand(data):
    pairs = batches.training_pairs(data, "train")
    assert pairs.query_ids == ["q1", "q2", "q4"]
    np.testing.assert_array_equal(pairs.query_rows, [0, 0, 1, 2])
    np.testing.assert_array_equal(pairs.document_rows, [0, 2, 1, 3])
    np.testing.assert_array_equal(pairs.positives, [[0, 2], [1, -1], [3, -1]])
    with pytest.raises(DataError, match="split 'nothing' judges no document relevant"):
        batches.training_pairs(data, "nothing")


def test_batch_by_hand(make_batch):
    batch = make_batch()(np.array([1, 3]), 0)
    np.testing.assert_array_equal(batch["document_rows"], [[2], [3]])
    np.testing.assert_array_equal(batch["positives"], [[0, 2], [3, -1]])
    assert batch["query_tokens"].shape == (2, 2)
    assert batch["document_tokens"].shape == (2, 1, 3)
    assert batch["document_mask"].sum() == 2


def test_listed_negatives(make_batch):
    negatives = np.array([[1, 3, -1], [2, 3, 0], [0, 1, 2]], np.int32)
    batch = make_batch(negatives=negatives, negatives_per_query=2, seed=5)
    one, same, other = batch(np.array([0, 2]), 7), batch(np.array([2, 0]), 7), batch(np.array([0, 2]), 8)
    assert one["document_rows"].shape == (2, 3)
    for row, allowed in zip(one["document_rows"], negatives[[0, 1]], strict=True):
        assert set(row[1:]) <= set(allowed)
    np.testing.assert_array_equal(one["document_rows"], same["document_rows"][::-1])  # of the example alone
    assert not np.array_equal(one["document_rows"], other["document_rows"])
    np.testing.assert_array_equal(one["document_mask"].any(-1), one["document_rows"] >= 0)
    few = np.array([[-1, 3, -1], [2, -1, -1], [-1, -1, -1]], np.int32)
    few_batch = make_batch(negatives=few, negatives_per_query=2)(np.array([0, 2, 3]), 0)
    np.testing.assert_array_equal(few_batch["document_rows"][:, 1:], [[3, -1], [2, -1], [-1, -1]])
    with pytest.raises(ValueError, match="negatives_per_query is 4, but the table lists 3"):
        make_batch(negatives=negatives, negatives_per_query=4)
    with pytest.raises(ValueError, match="negatives_per_query is 2, but no table"):
        make_batch(negatives_per_query=2)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_one_global_batch(processes):
    order = batches.Order(10, seed=1)
    whole = order.rows(3, 8)
    parts = [order.rows(3, 8, process, processes) for process in range(processes)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_every_epoch_has_every_example_in_another_order():
    order = batches.Order(12, seed=1)
    epochs = [np.concatenate([order.rows(step, 4) for step in range(3 * e, 3 * e + 3)]) for e in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert not np.array_equal(*epochs)
    assert not np.array_equal(
        epochs[0], np.concatenate([batches.Order(12, seed=2).rows(s, 4) for s in range(3)])
    )


def test_neighbors_stay_together_and_are_cut_anew_each_epoch():
    order = batches.Order(11, seed=1, neighbors=3)
    epochs = [order.rows(epoch, 9) for epoch in range(12)]
    for epoch in epochs:
        assert len(set(epoch)) == 9
        for triple in epoch.reshape(3, 3):
            np.testing.assert_array_equal(triple, (triple[0] + np.arange(3)) % 11)
    assert set(np.concatenate(epochs)) == set(range(11))
    with pytest.raises(ValueError, match="neighbors is 12; allowed: 1 to 11"):
        batches.Order(11, seed=1, neighbors=12)


def test_a_stream_from_any_step_goes_on_as_the_whole_one(make_batch):
    order = batches.Order(4, seed=0)

    def rows(first):
        found = batches.stream(make_batch(), order, batch_size=2, first_step=first, total_steps=6)
        return [batch["document_rows"] for batch in found]

    whole = rows(0)
    assert len(whole) == 6
    np.testing.assert_array_equal(rows(4), whole[4:])
    assert rows(6) == []


def test_a_batch_that_does_not_divide_is_refused(make_batch):
    with pytest.raises(ValueError, match="batch_size 3 does not divide among 2 processes"):
        batches.stream(
            make_batch(), batches.Order(4, 0), batch_size=3, first_step=0, total_steps=1, processes=2
        )
