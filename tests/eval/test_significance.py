import itertools
import math
import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import significance


def columns(first, second):
    return dict(zip("abcdefghijklmnop", first, strict=False)), dict(
        zip("abcdefghijklmnop", second, strict=False)
    )


def test_by_hand():
    # Differences 3, 2, -1, sum 4. The signs give ±3 ±2 ±1: sums 6, 4, 2, 0, 0, -2, -4, -6.
    # |sum| >= 4 in four of the eight.
    assert significance.randomization_test(*columns([3, 2, 0], [0, 0, 1])) == 4 / 8
    # Differences 1, 1, 1, 1: only all plus and all minus reach 4, two of sixteen. The equal pair is left out.
    assert significance.randomization_test(*columns([1, 1, 1, 1, 0.3], [0, 0, 0, 0, 0.3])) == 2 / 16
    # One query that differs says nothing: both signs reach it.
    assert significance.randomization_test({"q": 1.0}, {"q": 0.0}) == 1.0


def test_ties_count_whatever_the_rounding():
    # 0.1 + 0.2 - 0.3 is 5.6e-17 in one order and 2.8e-17 in another; the sum is 0, so every swapping ties.
    assert significance.randomization_test(*columns([0.1, 0.2, 0], [0, 0, 0.3])) == 1.0
    assert significance.randomization_test(*columns([0, 0.1, 0.2], [0.3, 0, 0])) == 1.0


values = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8)


@settings(deadline=None)
@given(values)
def test_exact_p_is_the_enumeration(pairs):
    first, second = columns(*zip(*pairs, strict=True))
    differences = [a - b for a, b in pairs]
    size = sum(map(abs, differences))
    sums = [
        math.fsum(sign * d for sign, d in zip(signs, differences, strict=True))
        for signs in itertools.product([1, -1], repeat=len(pairs))
    ]
    expected = np.mean([abs(s) >= abs(sums[0]) - 1e-9 * size for s in sums])
    assert significance.randomization_test(first, second) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(values, st.integers(0, 3), st.sampled_from([10, 100_000]))
def test_p_is_a_probability_symmetric_and_one_for_equals(pairs, seed, samples):
    # 10 samples are fewer than the swappings of four queries, so both ways to p are taken.
    first, second = columns(*zip(*pairs, strict=True))
    p = significance.randomization_test(first, second, samples=samples, seed=seed)
    assert 0 < p <= 1
    assert significance.randomization_test(second, first, samples=samples, seed=seed) == p
    reordered = dict(reversed(first.items()))
    assert significance.randomization_test(reordered, second, samples=samples, seed=seed) == p
    assert significance.randomization_test(first, first, samples=samples, seed=seed) == 1.0
    if len(pairs) > 1:
        assert 0 <= significance.t_test(first, second) <= 1
        assert significance.t_test(second, first) == significance.t_test(first, second)
        assert significance.t_test(first, first) == 1.0


def draw(n, effect):
    """Two systems of n queries whose differences are normal, with a mean of `effect` standard deviations."""
    rng = np.random.default_rng(0)
    first = {f"q{i}": value for i, value in enumerate(rng.random(n))}
    return first, {query_id: value - 0.1 * rng.normal(effect) for query_id, value in first.items()}


def test_samples_come_near_the_exact_p():
    first, second = draw(14, 0.25)
    exact = significance.randomization_test(first, second, samples=2**14)
    sampled = significance.randomization_test(first, second, samples=2**14 - 1, seed=3)
    assert 0.05 < exact < 0.95
    # The standard error of a share from 16,383 draws is at most 0.004.
    assert abs(sampled - exact) < 0.016
    assert sampled != exact


def test_add_one_estimate():
    # All of 40 queries differ by 1: only two of 2^40 swappings reach that, so none of 99 draws does.
    first, second = {f"q{i}": 1.0 for i in range(40)}, {f"q{i}": 0.0 for i in range(40)}
    assert significance.randomization_test(first, second, samples=99) == 1 / 100


def test_agrees_with_scipy_on_many_queries():
    first, second = draw(300, 0.05)
    p = significance.randomization_test(first, second, samples=20_000, seed=1)
    a, b = np.array(list(first.values())), np.array(list(second.values()))
    assert significance.t_test(first, second) == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, rel=1e-9)
    assert p == pytest.approx(significance.t_test(first, second), abs=0.02)
    assert significance.randomization_test(first, second, samples=20_000, seed=1) == p
    assert significance.randomization_test(first, second, samples=20_000, seed=2) != p


def test_t_test_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, t = 2 / (1 / sqrt 3) = 3.4641 with 2 degrees of freedom, where
    # p = 1 - t / sqrt(t^2 + 2) = 0.0742.
    p = significance.t_test(*columns([1, 2, 3], [0, 0, 0]))
    assert p == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-9)


def test_t_test_without_variance():
    assert significance.t_test(*columns([1, 1], [0, 0])) == 0.0
    assert significance.t_test(*columns([1, 1], [1, 1])) == 1.0
    with pytest.raises(ValueError, match="have 1 query; a t-test needs at least 2"):
        significance.t_test({"q": 1.0}, {"q": 0.0})


@pytest.mark.parametrize("test", [significance.randomization_test, significance.t_test])
def test_bad_input_is_refused_by_name(test):
    with pytest.raises(ValueError, match=r"only in first: 1 \['a'\], only in second: 7 \['b0', .*'b4'\]$"):
        test({"q": 1.0, "a": 1.0}, {"q": 1.0} | {f"b{i}": 1.0 for i in range(7)})
    with pytest.raises(ValueError, match="have no queries"):
        test({}, {})
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"second\['q'\] is {value}; it must be finite"):
            test({"q": 1.0, "r": 1.0}, {"q": value, "r": 1.0})


def test_samples_must_be_positive():
    with pytest.raises(ValueError, match="samples is 0"):
        significance.randomization_test({"q": 1.0}, {"q": 1.0}, samples=0)


def test_speed():
    # A second or so for 2,500 queries and 100,000 samples; a tenth of that here.
    first, second = draw(2500, 0.01)
    start = time.process_time()
    significance.randomization_test(first, second, samples=10_000)
    assert time.process_time() - start < 2


def test_holm_by_hand():
    # In order 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.5.
    assert significance.holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    # 3 x 0.4 is cut at 1, and no later one may be below it.
    assert significance.holm([0.6, 0.4, 0.5]) == [1.0, 1.0, 1.0]
    # 3 x 0.01 = 0.03; 2 x 0.011 = 0.022 is raised to it.
    assert significance.holm([0.01, 0.011, 0.9]) == pytest.approx([0.03, 0.03, 0.9])
    assert significance.holm([0.2]) == [0.2]
    assert significance.holm([]) == []
    with pytest.raises(ValueError, match=r"p_values has 1.5; allowed: 0 to 1"):
        significance.holm([0.1, 1.5])


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_as_the_stepwise_procedure(p_values, level):
    # Holm's own words: reject from the smallest on, while p_(i) <= level / (m - i + 1).
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    rejected = list(
        itertools.takewhile(
            lambda i: p_values[i] * (len(p_values) - order.index(i)) <= level,
            order,
        )
    )
    corrected = significance.holm(p_values)
    assert {i for i, p in enumerate(corrected) if p <= level} == set(rejected)
    assert all(p <= c <= min(1, len(p_values) * p) for p, c in zip(p_values, corrected, strict=True))
