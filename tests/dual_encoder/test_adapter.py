import types

import jax.numpy as jnp
import numpy as np
import pytest

from corpora.tables import DataError
from dual_encoder import adapter
from dual_encoder.adapter import Settings
from dual_encoder.retriever import Retriever

RNG = np.random.default_rng(0)


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_at_the_start_nothing_is_changed():
    x = unit(RNG.normal(size=(5, 8)))
    for sides, adapted in (("query", ("query",)), ("both", ("query", "document"))):
        adapters = adapter.init(Settings(rank=3, sides=sides), 8)
        assert tuple(adapters) == adapted
        for side in ("query", "document"):
            np.testing.assert_allclose(adapter.adapted(adapters, side, x, unit=True), x, atol=1e-6)


def test_the_change_is_a_low_rank_residual():
    a, b, x = (RNG.normal(size=shape).astype(np.float32) for shape in ((8, 3), (3, 8), (5, 8)))
    adapters = {"query": {"a": jnp.asarray(a), "b": jnp.asarray(b)}}
    expected = x + x @ (a @ b).T
    np.testing.assert_allclose(
        adapter.adapted(adapters, "query", x, unit=False), expected, rtol=2e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        adapter.adapted(adapters, "query", x, unit=True), unit(expected), rtol=2e-5, atol=1e-5
    )
    np.testing.assert_array_equal(adapter.adapted(adapters, "document", x, unit=False), x)


@pytest.mark.parametrize("side", ["query", "document"])
def test_a_saved_adapter_is_searched_with(side, tmp_path):
    """A turn of the plane by a quarter, as e + (turn - 1) e, of either side."""
    turn = np.array([[0, -1], [1, 0]], np.float32)
    file = tmp_path / "rank-2.npz"
    np.savez(file, **adapter.arrays({side: {"a": jnp.asarray(turn - np.eye(2)), "b": jnp.eye(2)}}))
    documents = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    read = lambda rows: [(str(row), "", "") for row in rows]
    words = types.SimpleNamespace(encode=lambda texts, length: [[1]])
    found = Retriever(
        types.SimpleNamespace(documents=types.SimpleNamespace(read=read)),
        types.SimpleNamespace(tokenizer=words, queries=lambda texts: (documents[:1], None)),
        types.SimpleNamespace(vectors=lambda: documents, text_of_row=np.arange(4, dtype=np.int32)),
        None,
        0.5,
        adapter.load(file, 2),
    ).search("x", 1, "dual_encoder")
    assert [hit.doc_id for hit in found] == ["1" if side == "query" else "3"]
    assert found[0].score == pytest.approx(1)


def test_a_file_of_no_adapters_is_named(tmp_path):
    file = tmp_path / "a.npz"
    with pytest.raises(DataError, match=r"a.npz is no file of adapters: .*No such file"):
        adapter.load(file, 2)
    for saved, message in (
        (adapter.arrays(adapter.init(Settings(rank=1), 3)), "no adapters of vectors of 2 numbers"),
        ({"x": np.ones(2)}, "no adapters of vectors of 2 numbers; it has none"),
        ({"query/a": np.ones((2, 1))}, "is no file of adapters"),
    ):
        np.savez(file, **saved)
        with pytest.raises(DataError, match=message):
            adapter.load(file, 2)
    file.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match="is no file of adapters"):
        adapter.load(file, 2)


def test_losses_by_hand():
    scores = jnp.array([[1.0, 0.5, 3.0], [0.0, 1.0, 9.0]])
    there = jnp.array([[True, True], [True, False]])
    # Triplet: max(0, .2 - 1 + .5) = 0, .2 - 1 + 3 = 2.2, .2 - 0 + 1 = 1.2, of three.
    assert adapter.of_scores(scores, there, Settings(rank=1, margin=0.2)) == pytest.approx(3.4 / 3)
    first = np.log(np.exp([1, 0.5, 3]).sum()) - 1
    second = np.log(np.exp([0, 1]).sum())
    found = adapter.of_scores(scores, there, Settings(rank=1, temperature=1.0))
    assert found == pytest.approx((first + second) / 2, rel=1e-6)


def test_negatives_are_the_nearest_of_the_whole_corpus_but_the_positives():
    documents = unit(np.array([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1]]))
    adapters = adapter.init(Settings(rank=1), 2)
    found = adapter._nearest(adapters, documents[:1], documents, np.array([[1, -1]]), 2, True)
    np.testing.assert_array_equal(found, [[0, 2]])
    found = adapter._nearest(adapters, documents[:1], documents, np.array([[1, 3]]), 4, True)
    np.testing.assert_array_equal(found, [[0, 2, -1, -1]])


@pytest.mark.parametrize("margin", [pytest.param(None, marks=pytest.mark.slow), 0.3])
def test_it_learns_a_turn_of_the_space(margin):
    """Queries are their documents with two pairs of numbers exchanged, which a residual of rank 4 can
    undo."""
    documents = unit(RNG.normal(size=(60, 8)))
    queries = documents[:, [1, 0, 3, 2, 4, 5, 6, 7]]
    positives = np.stack([np.arange(60), np.full(60, -1)], axis=1)
    settings = Settings(rank=4, epochs=20, batch_size=20, rate=4e-2, negatives=8, margin=margin)
    epochs = []
    trained = adapter.train(
        queries[:40],
        documents,
        positives[:40],
        settings,
        unit=True,
        report=lambda epoch, _: epochs.append(epoch),
    )
    assert epochs == list(range(1, 21))
    first = lambda adapters: (
        (np.asarray(adapter.adapted(adapters, "query", queries[40:], unit=True)) @ documents.T).argmax(1)
        == np.arange(40, 60)
    ).mean()
    assert first(adapter.init(settings, 8)) < 0.5
    assert first(trained) > 0.75


def test_what_cannot_be_is_refused():
    for fields, message in (
        ({"rank": 0}, "rank is 0"),
        ({"rank": 1, "sides": "document"}, "allowed: query, both"),
    ):
        with pytest.raises(ValueError, match=message):
            Settings(**fields)
    x = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match="rank is 5; allowed: 1 to 4"):
        adapter.train(x, x, np.array([[0], [1]]), Settings(rank=5), unit=False)
    with pytest.raises(ValueError, match="no query has a relevant document"):
        adapter.train(x, x, np.array([[-1], [-1]]), Settings(rank=1), unit=False)
