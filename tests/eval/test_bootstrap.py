"""eval.bootstrap: resampled means against closed forms."""

import numpy as np
import pytest

from eval import bootstrap


def test_systems_share_their_draws_and_spread_like_the_mean():
    values = np.random.default_rng(1).random(50)
    a = {f"q{i}": float(value) for i, value in enumerate(values)}
    b = {query_id: a[query_id] - 0.25 for query_id in reversed(a)}  # in another order
    found = bootstrap.means({"a": a, "b": b}, resamples=20_000)
    np.testing.assert_allclose(found["a"] - found["b"], 0.25)  # paired: the difference has no spread
    assert found["a"].mean() == pytest.approx(values.mean(), abs=2e-3)
    assert found["a"].std() == pytest.approx(values.std() / np.sqrt(50), rel=0.03)


def test_one_of_two_queries():
    """The mean of two draws from {0, 1} is 0, 1/2, 1 with 1/4, 1/2, 1/4."""
    found = bootstrap.means({"a": {"x": 0.0, "y": 1.0}}, resamples=40_000)["a"]
    shares = [float((found == value).mean()) for value in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.01)


def test_the_seed_decides():
    columns = {"a": {f"q{i}": float(i) for i in range(9)}}
    one, again, other = (bootstrap.means(columns, resamples=5, seed=seed)["a"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize("systems", [{}, {"a": {}}, {"a": {"x": 1.0}, "b": {"y": 1.0}}])
def test_refuses(systems):
    with pytest.raises(ValueError, match="queries"):
        bootstrap.means(systems)
