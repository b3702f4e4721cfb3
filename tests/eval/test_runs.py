import numpy as np
import pytest

from eval import runs


def test_by_hand():
    scores = np.array([[2.0, 1.0], [3.0, -np.inf]], np.float32)
    rows = np.array([[1, 0], [2, -1]], np.int32)
    run = runs.from_rows(["q1", "q2"], ["a", "b", "c"], scores, rows)
    assert run == {"q1": {"b": 2.0, "a": 1.0}, "q2": {"c": 3.0}}
    assert list(run["q1"]) == ["b", "a"]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 queries, scores"):
        runs.from_rows(["q1"], ["a"], np.zeros((2, 1)), np.zeros((2, 1), int))
