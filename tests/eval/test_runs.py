import numpy as np
import pytest

from eval import runs


def test_by_hand():
    scores = np.array([[2.0, 1.0], [3.0, -np.inf]], np.float32)
    rows = np.array([[1, 0], [2, -1]], np.int32)
    run = runs.from_rows(["q1", "q2"], ["a", "b", "c"], scores, rows)
    assert run == {"q1": {"b": 2.0, "a": 1.0}, "q2": {"c": 3.0}}
    assert list(run["q1"]) == ["b", "a"]


def test_the_document_of_the_querys_own_id_is_dropped():
    # b is the text of query b itself: its best two are c and a. Query x has no text of its own, and keeps
    # its first two of three; query c finds nothing else.
    scores = np.array([[9.0, 2.0, 1.0], [3.0, 2.0, 1.0], [5.0, -np.inf, -np.inf]], np.float32)
    rows = np.array([[1, 2, 0], [0, 1, 2], [2, -1, -1]], np.int32)
    run = runs.from_rows(["b", "x", "c"], ["a", "b", "c"], scores, rows, drop_same_id=True)
    assert run == {"b": {"c": 2.0, "a": 1.0}, "x": {"a": 3.0, "b": 2.0}, "c": {}}
    assert [list(hits) for hits in run.values()] == [["c", "a"], ["a", "b"], []]


def test_a_run_without_the_documents_of_the_queries_own_ids():
    run = {"a": {"b": 1.0, "a": 3.0}, "q": {"a": 1.0}}
    assert runs.without_same_id(run) == {"a": {"b": 1.0}, "q": {"a": 1.0}}


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 queries, scores"):
        runs.from_rows(["q1"], ["a"], np.zeros((2, 1)), np.zeros((2, 1), int))
