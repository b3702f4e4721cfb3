"""The batch of a step is a function of seed and step, whatever the number of processes and restarts."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora import batches, tokenizer
from corpora.lengths import ladder
from corpora.tables import DataError, Document
from corpora.tokens import PassageTable, TextSettings, TokenTable

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
    documents = settings.passages(
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


def test_a_teachers_scores_stand_where_its_documents_do(make_batch):
    negatives = np.array([[1, 3, -1], [2, 3, 0], [0, 1, 2]], np.int32)
    positives = np.array([[0, 2], [1, -1], [3, -1]])
    score = lambda rows: np.where(rows < 0, np.nan, 10.0 * rows + np.arange(3)[:, None]).astype(np.float32)
    teacher = batches.Teacher(score(positives), score(negatives))
    make = make_batch(negatives=negatives, negatives_per_query=2, teacher=teacher, seed=5)
    for step in range(4):  # a document's score is 10 times its row plus its query's
        batch = make(np.array([1, 3, 0, 2]), step)
        query_B1 = np.array([[0], [2], [0], [1]])
        rows_BH = batch["document_rows"]
        expected = np.where(rows_BH < 0, np.nan, 10.0 * rows_BH + query_B1)
        np.testing.assert_array_equal(batch["teacher"], expected)
        part = make(np.array([1, 3, 0, 2]), step, np.array([1, 2]))
        np.testing.assert_array_equal(part["teacher"], expected[1:3])
    alone = make_batch(teacher=batches.Teacher(score(positives)))(np.array([1, 3]), 0)
    np.testing.assert_array_equal(alone["teacher"], [[20.0], [32.0]])
    with pytest.raises(ValueError, match=r"teacher.negatives are \(\)"):
        make_batch(negatives=negatives, negatives_per_query=2, teacher=batches.Teacher(score(positives)))
    with pytest.raises(ValueError, match=r"teacher.positives are \(2, 2\); allowed: one a row, \(3, 2\)"):
        make_batch(teacher=batches.Teacher(score(positives)[:2]))


def test_targets_are_those_of_the_querys_row(make_batch):
    targets = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    batch = make_batch(targets=targets)(np.array([1, 3, 2]), 0)
    np.testing.assert_array_equal(batch["target"], [[0, 1], [4, 5], [2, 3]])
    assert "target" not in make_batch()(np.array([1]), 0)


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


def table(lengths, document_of_row=None):
    """A table of rows of the given lengths: row 3 is 3 3 3 ..."""
    fields = dict(
        tokens=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        segments=np.zeros(sum(lengths), np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        pad_id=-9,
    )
    return TokenTable(**fields) if document_of_row is None else PassageTable(**fields, **document_of_row)


def one_to_one(count):
    rows = np.arange(count, dtype=np.int32)
    return batches.Pairs(rows, rows, rows[:, None], [f"q{row}" for row in rows])


def test_a_batch_is_padded_to_the_shortest_length_that_holds_it():
    queries = table([3, 5, 20, 2])
    documents = table([10, 70, 20, 40, 101, 30])
    make = batches.contrastive(one_to_one(4), queries, documents, query_length=32, document_length=100)

    def lengths(examples, **kwargs):
        batch = make(np.array(examples), 0, **kwargs)
        return batch["query_tokens"].shape[-1], batch["document_tokens"].shape[-1]

    assert ladder(32) == (16, 32)
    assert ladder(100) == (16, 32, 48, 64, 80, 96, 100)
    assert lengths([0]) == (16, 16)
    assert lengths([0, 2]) == (32, 32)
    assert lengths([0, 1]) == (16, 80)
    # Of a part it is the whole batch's.
    assert lengths([0, 1, 2, 3], part=slice(0, 1)) == (32, 80)
    # A drawn negative counts too, and one above the longest length is cut.
    for negative, length in ((4, 100), (5, 32)):
        drawn = batches.contrastive(
            one_to_one(4),
            queries,
            documents,
            query_length=32,
            document_length=100,
            negatives=np.full((4, 1), negative, np.int32),
            negatives_per_query=1,
        )(np.array([0]), 0)
        assert drawn["document_tokens"].shape == (1, 2, length)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_get_parts_of_one_padded_batch(processes):
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, 40)
    documents = table(
        rng.integers(1, 90, counts.sum()),
        {"document_of_row": np.repeat(np.arange(40, dtype=np.int32), counts)},
    )
    queries, pairs = table(rng.integers(1, 40, 40)), one_to_one(40)
    lengths = batches.example_lengths(pairs, queries, documents)
    order = batches.Order(40, 5, length_window=3, lengths=lengths)
    make = batches.contrastive(
        pairs,
        queries,
        documents,
        query_length=40,
        document_length=90,
        negatives=rng.integers(-1, 40, (40, 5)).astype(np.int32),
        negatives_per_query=2,
        seed=5,
    )

    def stream(first_step, process, processes):
        return list(
            batches.stream(
                make, order, batch_size=8, first_step=first_step, total_steps=12,
                part=np.arange(process, 8, processes),
            )
        )  # fmt: skip

    whole = stream(0, 0, 1)
    parts = [stream(7, process, processes) for process in range(processes)]
    assert len({batch["document_tokens"].shape for batch in whole}) > 1
    for step, of_processes in zip(range(7, 12), zip(*parts, strict=True), strict=True):
        for name, array in whole[step].items():
            for process, part in enumerate(of_processes):
                np.testing.assert_array_equal(part[name], array[process::processes])


def test_every_passage_of_a_document_stands_for_it_and_the_document_is_named():
    # Documents 0, 1, 2 have passages {0, 1, 2}, {3}, {4, 5}; passage p is p tokens of p.
    documents = table([1, 1, 2, 3, 4, 5], {"document_of_row": np.array([0, 0, 0, 1, 2, 2], np.int32)})
    pairs = batches.Pairs(np.array([0]), np.array([0]), np.array([[0]]), ["q"])
    make = batches.contrastive(
        pairs, table([1]), documents, query_length=1, document_length=5,
        negatives=np.array([[2, -1]], np.int32), negatives_per_query=2,
    )  # fmt: skip
    seen = set()
    for step in range(40):
        batch = make(np.array([0]), step)
        np.testing.assert_array_equal(batch["document_rows"], [[0, 2, -1]])
        np.testing.assert_array_equal(batch["positives"], [[0]])
        tokens = batch["document_tokens"][0, :, 0]
        assert tokens[2] == -9
        seen.add((tokens[0], tokens[1]))
    assert seen == {(positive, negative) for positive in (0, 1, 2) for negative in (4, 5)}
    np.testing.assert_array_equal(batches.example_lengths(pairs, table([4]), documents), [4 + 2])


@given(
    examples=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    length_window=st.integers(1, 7),
    seed=st.integers(0, 3),
)
def test_grouped_by_length_every_example_still_comes_once_an_epoch(examples, batch_size, length_window, seed):
    lengths = np.random.default_rng(seed).integers(1, 50, examples)
    order = batches.Order(examples, seed, length_window=length_window, lengths=lengths)
    steps = -(-3 * examples // batch_size)
    rows = np.concatenate([order.rows(step, batch_size) for step in range(steps)])
    for epoch in range(3):
        assert sorted(rows[epoch * examples : (epoch + 1) * examples]) == list(range(examples))


def test_a_window_is_sorted_and_its_batches_shuffled_by_hand():
    lengths = np.array([6, 1, 5, 2, 4, 3, 8, 7])
    plain = batches.Order(8, seed=4)
    grouped = batches.Order(8, seed=4, length_window=2, lengths=lengths)
    firsts = set()
    for window in range(12):  # two windows of two batches of two make an epoch
        before = np.concatenate([plain.rows(2 * window + number, 2) for number in range(2)])
        found = [grouped.rows(2 * window + number, 2).tolist() for number in range(2)]
        ordered = sorted(before.tolist(), key=lambda example: lengths[example])
        assert sorted(found, key=lambda batch: lengths[batch[0]]) == [ordered[:2], ordered[2:]]
        firsts.add(found[0] == ordered[:2])
    assert firsts == {True, False}


def test_grouping_by_length_lowers_the_share_of_padding_and_shapes_stay_few():
    rng = np.random.default_rng(0)
    count, batch_size = 4_000, 64
    queries = table(rng.integers(4, 17, count))
    documents = table(np.clip(rng.lognormal(4, 0.8, count).astype(int), 1, 256))
    pairs = one_to_one(count)
    make = batches.contrastive(pairs, queries, documents, query_length=32, document_length=256)

    def padding(**kwargs):
        order = batches.Order(count, 0, **kwargs)
        made = [make(order.rows(step, batch_size), step) for step in range(48)]
        masks = [batch[f"{side}_mask"] for batch in made for side in ("query", "document")]
        shapes = {(batch["query_mask"].shape, batch["document_mask"].shape) for batch in made}
        assert len(shapes) <= len(ladder(32)) * len(ladder(256))
        return 1 - sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks), shapes

    apart, _ = padding()
    grouped, shapes = padding(length_window=16, lengths=batches.example_lengths(pairs, queries, documents))
    assert len(shapes) > 3
    # 4 to 16 of a query's 16 tokens are padding either way, and of documents up to a fifth.
    assert apart > 0.6
    assert grouped < 0.25


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"length_window": -1}, "length_window is -1 and neighbors 1; allowed"),
        (
            {"length_window": 2, "neighbors": 2},
            "length_window is 2 and neighbors 2; .* only with neighbors 1",
        ),
        ({"length_window": 2, "lengths": None}, "length_window is 2 with no lengths; needed: 4"),
        ({"length_window": 2, "lengths": np.ones(3)}, "length_window is 2 with 3 lengths; needed: 4"),
    ],
)
def test_a_wrong_window_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        batches.Order(4, 0, **{"lengths": np.ones(4), **kwargs})
