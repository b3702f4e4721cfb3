"""Distillation: the student's scores by teacher forcing, a dual encoder as teacher."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corpora.tables import DataError
from corpora.tokens import TokenTable
from dual_encoder import retriever, vectors
from dual_encoder.retriever import vectors_folder
from generative_retrieval import distillation, exhaustive, indexing, speller
from generative_retrieval.indexing import Examples
from training.build import SpecError, build
from training.ranking import list_net

B = 2


def teacher(source, texts, *, rows, scores):
    """Candidates of each text, by its first letter."""
    at = [ord(text[0]) - ord("a") for text in texts]
    return np.asarray(rows, np.int32)[at], np.asarray(scores, np.float32)[at]


SYMBOLS = np.array([[1, 2, 0], [3, 0, -1], [1, 4, 0], [2, 0, -1]], np.int32)


def task_of(make_pair, **fields):
    """The Task of a config; with a teacher whose ranking is known in place of the run's."""
    task = build(
        dict(
            name="generative_retrieval.distillation.Distilled",
            spelling=dict(name="generative_retrieval.task.SequenceToSequence", model=make_pair()),
            teacher=dict(name="generative_retrieval.distillation.dense", run="runs/dual", count=2),
            **fields,
        )
    )
    assert task.teacher.keywords == dict(run="runs/dual", count=2)
    ranked = functools.partial(teacher, rows=[[2, 0], [1, -1]], scores=[[5.0, 4.0], [3.0, 0.0]])
    return dataclasses.replace(task, teacher=ranked)


def queries():
    rng = np.random.default_rng(0)
    mask = np.arange(5)[None] < np.array([[5], [2]])
    return {"tokens": rng.integers(0, 20, (B, 5), dtype=np.int32), "mask": mask}


@pytest.mark.slow
def test_scores_side_by_side_equal_teacher_forcing(make_pair):
    model = build(make_pair())
    batch = queries() | exhaustive.targets(SYMBOLS[:B])
    ids = {name: np.stack([x, x[::-1]]) for name, x in exhaustive.targets(SYMBOLS).items()}

    @jax.jit
    def run(key):
        variables = model.init(key, batch)
        of = speller.of(model, variables, queries())
        found = distillation.log_likelihood(of, ids["targets"], ids["target_mask"])
        return found, exhaustive.scores(model, variables, queries(), SYMBOLS)

    found, expected = jax.device_get(run(jax.random.key(0)))
    np.testing.assert_allclose(found, [expected[0], expected[1, ::-1]], rtol=1e-5)


def source_of(doc_ids, rows):
    documents = types.SimpleNamespace()
    return indexing.Source(documents, np.asarray(rows, np.int32), doc_ids, (), np.zeros(0), None, 4)


def examples():
    table = TokenTable(np.arange(1, 7, dtype=np.int32), np.zeros(6, np.uint8), np.array([0, 2, 3, 6]), 0)
    documents = TokenTable(np.arange(5, dtype=np.int32), np.zeros(5, np.uint8), np.array([0, 5]), 0)
    return [
        Examples(documents, np.array([3])),
        Examples(table, np.array([1, 0, 2]), texts=["b", "a", "b"]),
    ]


def with_candidates(task):
    of, source = examples(), source_of("wxyz", range(4))
    make = indexing.batches(of, SYMBOLS, length=4, seed=0)
    return task.batches(make, source=source, examples=of, symbols_NT=SYMBOLS, seed=0)


def test_batches_have_the_candidates_of_queries(make_pair):
    make = with_candidates(task_of(make_pair))
    whole = make(np.array([2, 0, 1]), 0)
    assert whole["candidates"].tolist() == [[2, 0], [-1, -1], [1, -1]]  # a document has none
    assert whole["teacher_scores"].tolist() == [[5, 4], [0, 0], [3, 0]]
    assert whole["candidate_targets"][0].tolist() == [[1, 4, 0], [1, 2, 0]]
    assert whole["candidate_mask"][2, 0].tolist() == [1, 1, 0]
    part = make(np.array([2, 0, 1]), 0, slice(1, 3))
    assert all((part[name] == x[1:3]).all() for name, x in whole.items())


@pytest.mark.slow
def test_the_loss_is_the_sum_of_both(make_pair):
    task = task_of(make_pair, weight=0.5)
    batch = with_candidates(task)(np.array([2, 0, 2]), 0)

    @jax.jit
    def run(key):
        params, state = task.init(key, batch)
        loss, (_, metrics) = task.loss(params, state, batch, key, train=False)
        alone, _ = task.spelling.loss(params, state, batch, key, train=False)
        texts = {name: batch[name] for name in ("tokens", "mask")}
        return (
            loss,
            metrics,
            alone,
            exhaustive.scores(task.model, task.variables(params, state), texts, SYMBOLS),
        )

    loss, metrics, alone, student = jax.device_get(run(jax.random.key(0)))
    student = student[[0, 2]][:, [2, 0]]
    apart = list_net(student, jnp.array([[5.0, 4.0]] * 2), where=jnp.ones((2, 2), bool))
    np.testing.assert_allclose(metrics["distillation"], apart, rtol=1e-5)
    np.testing.assert_allclose(loss, alone + 0.5 * apart, rtol=1e-5)


def test_a_dual_encoder_ranks_the_indexed_documents(tmp_path, monkeypatch):
    of_documents = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.5, 0.5]], np.float32)
    ids = ["w", "v", "z", "x"]  # in the teacher's order; ours has no v, and does not index y

    def encode(start, stop, report):
        return of_documents[start:stop], np.arange(stop - start, dtype=np.int32)

    vectors.write(vectors_folder(tmp_path), {}, ids, 2, encode, title="x")
    (tmp_path / "config.json").write_text("{}")
    asked = {"one": [1.0, 0.0], "two": [0.0, 1.0]}
    about = {}
    trained = types.SimpleNamespace(
        queries=lambda texts: (np.array([asked[t] for t in texts], np.float32), np.arange(len(texts))),
        identity=lambda: about,
    )
    monkeypatch.setattr(retriever.Trained, "load", lambda *_: trained)
    source = source_of(["z", "y", "x", "w"], [0, 2, 3])
    rows, scores = distillation.dense(source, ["two", "one"], run=str(tmp_path), count=4)
    assert rows.tolist() == [[0, 2, 3, -1], [3, 2, 0, -1]]
    np.testing.assert_allclose(scores, [[1, 0.5, 0, 0], [1, 0.5, 0, 0]], atol=1e-6)
    with pytest.raises(DataError, match=r"no vectors of 1 of 4 documents, such as 'y'"):
        distillation.dense(source_of(["z", "y", "x", "w"], range(4)), [], run=str(tmp_path), count=4)
    about["step"] = 3  # trained on since
    with pytest.raises(DataError, match=r"its best one now \(step is None there and 3"):
        distillation.dense(source, [], run=str(tmp_path), count=4)


def test_refuses(make_pair):
    with pytest.raises(SpecError, match="weight is 0; it must be positive"):
        task_of(make_pair, weight=0)
    with pytest.raises(ValueError, match="count is 1; it must be at least 2"):
        distillation.dense(None, [], run="", count=1)
