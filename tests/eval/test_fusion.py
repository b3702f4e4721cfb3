import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import fusion, measures

FIRST = {"q": {"a": 10.0, "b": 6.0, "c": 2.0}}
SECOND = {"q": {"c": 0.9, "d": 0.5, "b": 0.4}}


def test_min_max_by_hand():
    # first: a 1, b 0.5, c 0, d absent 0. second: c 1, d 0.2, b 0, a absent 0.
    fused = fusion.interpolate(FIRST, SECOND, 0.75)
    assert fused == {"q": pytest.approx({"a": 0.75, "b": 0.375, "c": 0.25, "d": 0.05})}


def test_z_score_by_hand():
    # first: mean 6, deviation sqrt(32/3), so a, b, c are 1.2247, 0, -1.2247, and d as the lowest.
    # second: mean 0.6, deviation sqrt(0.14/3) = 0.21602, so c 1.3887, d -0.4629, b -0.9258, and a as b.
    fused = fusion.interpolate(FIRST, SECOND, 0.5, normalization=fusion.z_score)
    expected = {"a": 0.1495, "b": -0.4629, "c": 0.0820, "d": -0.8438}
    assert fused == {"q": pytest.approx(expected, abs=1e-4)}


def test_any_function_normalizes():
    fused = fusion.interpolate(FIRST, SECOND, 0.5, normalization=lambda scores: (scores, -100.0))
    assert fused["q"]["d"] == pytest.approx(0.5 * -100 + 0.5 * 0.5)


def test_queries_of_either_run_are_kept():
    first, second = {"q1": {"a": 3.0, "b": 1.0}, "none": {}}, {"q2": {"a": 1.0, "b": 2.0}, "q1": {}}
    assert fusion.interpolate(first, second, 0.25) == {
        "q1": {"a": 0.25, "b": 0.0},
        "none": {},
        "q2": {"a": 0.0, "b": 0.75},
    }


@pytest.mark.parametrize("normalization", [fusion.min_max, fusion.z_score])
@pytest.mark.parametrize("constant", [0.0, 0.1, -3.0, 1e30])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_equal_scores_are_finite_and_above_absent_ones(normalization, constant, n):
    # Summing 0.1 three times rounds, so that its standard deviation is not exactly 0.
    with np.errstate(all="raise"):
        fused = fusion.interpolate({"q": {f"d{i}": constant for i in range(n)}}, {"q": {"other": 1.0}}, 0.9)[
            "q"
        ]
        normalized, absent = normalization(np.full(n, constant))
    assert np.ptp(normalized) == 0
    assert np.isfinite(normalized).all()
    assert absent < normalized[0]
    assert fused["d0"] > fused["other"]


@pytest.mark.parametrize("normalization", [fusion.min_max, fusion.z_score])
def test_no_scores(normalization):
    normalized, absent = normalization(np.zeros(0))
    assert normalized.shape == (0,)
    assert absent == 0.0


documents = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-1e6, 1e6, width=32), max_size=8)


@settings(deadline=None)
@given(documents, documents, st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([2.0, 1024.0]))
def test_interpolation_has_no_scale_and_no_order(first, second, weight, scale):
    fused = fusion.interpolate({"q": first}, {"q": second}, weight)["q"]
    assert set(fused) == set(first) | set(second)
    assert all(0 <= score <= 1 for score in fused.values())
    scaled = {doc_id: score * scale for doc_id, score in first.items()}
    assert fusion.interpolate({"q": scaled}, {"q": second}, weight)["q"] == pytest.approx(fused)
    assert fusion.interpolate({"q": second}, {"q": first}, 1 - weight)["q"] == pytest.approx(fused)


@settings(deadline=None)
@given(documents, documents)
def test_weight_one_keeps_the_ranking_of_the_first(first, second):
    first = {doc_id: float(round(score)) for doc_id, score in first.items()}
    fused = fusion.interpolate({"q": first}, {"q": second}, 1.0)["q"]
    lowest = min(first.values(), default=0.0)
    above = [doc_id for doc_id in measures.rank(first) if first[doc_id] > lowest]
    scores = [fused[doc_id] for doc_id in above]
    assert scores == sorted(scores, reverse=True)
    assert all(score > 0 for score in scores)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_bad_weights(weight):
    with pytest.raises(ValueError, match=f"weight is {weight}"):
        fusion.interpolate(FIRST, SECOND, weight)
    with pytest.raises(ValueError, match=f"weight is {weight}"):
        fusion.tune_weight(FIRST, SECOND, {"q": {"a": 1}}, "mrr", [0.5, weight])


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, 1e300])
def test_scores_that_cannot_be_normalized(score):
    with pytest.raises(ValueError, match="of query 'q' in second of document 'b'"):
        fusion.interpolate(FIRST, {"q": {"a": 1.0, "b": score}}, 0.5)


def test_reciprocal_rank_by_hand():
    # first ranks a, b, c and second c, d, b; e ties with f in the third, and f, the greater, comes first.
    third = {"q": {"e": 1.0, "f": 1.0}, "only": {"a": 0.0}}
    fused = fusion.reciprocal_rank([FIRST, SECOND, third])
    assert fused == {
        "q": pytest.approx(
            {"a": 1 / 61, "b": 1 / 62 + 1 / 63, "c": 1 / 63 + 1 / 61, "d": 1 / 62, "f": 1 / 61, "e": 1 / 62}
        ),
        "only": {"a": 1 / 61},
    }
    assert measures.rank(fused["q"])[:2] == ["c", "b"]
    assert fusion.reciprocal_rank([FIRST], k=0)["q"] == {"a": 1.0, "b": 1 / 2, "c": 1 / 3}


def test_bad_reciprocal_rank():
    with pytest.raises(ValueError, match="runs is empty"):
        fusion.reciprocal_rank([])
    with pytest.raises(ValueError, match="k is -1"):
        fusion.reciprocal_rank([FIRST], k=-1)
    with pytest.raises(ValueError, match="of query 'q' of document 'a' is nan"):
        fusion.reciprocal_rank([{"q": {"a": math.nan}}])


def test_tune_weight_by_hand():
    # Relevant: b. Scores at weight w: a w, b w/2, c 1-w, d (1-w)/5. So b is below a while w > 0, and below c
    # while w/2 < 1-w: rank 3 up to w = 2/3, where ids decide (c over b), then 2. At w = 0 a ties with b at 0,
    # and b, the greater id, is behind c and d.
    qrels = {"q": {"b": 1}, "missing": {"x": 1}}
    weights = [1.0, 0.75, 0.5, 0.0]
    best, curve = fusion.tune_weight(FIRST, SECOND, qrels, "mrr", weights)
    assert curve == {1.0: 1 / 4, 0.75: 1 / 4, 0.5: 1 / 6, 0.0: 1 / 6}
    assert best == 0.75  # the lower of the two
    for weight in weights:
        fused = fusion.interpolate(FIRST, SECOND, weight)
        assert measures.means(measures.evaluate(qrels, fused, ["mrr"]))["mrr"] == curve[weight]
    at_level_2 = fusion.tune_weight(FIRST, SECOND, {"q": {"b": 1, "a": 2}}, "mrr", [1.0], relevance_level=2)
    assert at_level_2 == (1.0, {1.0: 1.0})


def test_tune_weight_needs_weights():
    with pytest.raises(ValueError, match="weights is empty"):
        fusion.tune_weight(FIRST, SECOND, {"q": {"a": 1}}, "mrr", [])
