"""The order of domains: every chunk once a round, weights, blocks of one domain."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.mixture_order import MixtureOrder, apportioned, weights_of


def domain_of(rows, sizes):
    return np.searchsorted(np.cumsum(sizes), rows, side="right")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 3))
def test_without_weights_a_round_has_each_chunk_once(sizes, batch_size, seed):
    order = MixtureOrder(sizes, seed)
    total = sum(sizes)
    rows = np.concatenate([order.rows(step, batch_size) for step in range(-(-2 * total // batch_size))])
    for start in (0, total):
        assert sorted(rows[start : start + total]) == list(range(total))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(4, 30), min_size=1, max_size=3), st.integers(1, 4), st.integers(0, 3))
def test_rows_of_a_block_are_of_one_domain_and_no_chunk_is_seen_twice_before_all_of_its_domain(
    sizes, block, seed
):
    order = MixtureOrder(sizes, seed, domain_rows=block)
    rows = np.concatenate([order.rows(step, 3 * block) for step in range(40)])
    domains = domain_of(rows, sizes)
    assert (domains.reshape(-1, block) == domains[::block, None]).all()
    for domain, size in enumerate(sizes):
        mine = rows[domains == domain]
        for start in range(0, len(mine) - size + 1, size):
            assert len(set(mine[start : start + size])) == size


def test_weights_are_the_shares_of_every_round():
    sizes, weights = [30, 50, 20], [1.0, 1.0, 2.0]
    order = MixtureOrder(sizes, 0, weights=weights)
    assert order.shares.tolist() == [0.25, 0.25, 0.5]
    for step in range(3):  # a batch of a round, 100 blocks
        counts = np.bincount(domain_of(order.rows(step, 100), sizes), minlength=3)
        assert counts.tolist() == [25, 25, 50]


def test_a_domain_of_weight_0_is_never_seen():
    order = MixtureOrder([5, 5], 0, weights=[1, 0])
    assert order.rows(0, 20).max() < 5


def test_a_step_does_not_depend_on_those_before_it_and_the_seed_matters():
    steps = {seed: MixtureOrder([40, 9], seed, domain_rows=2) for seed in (0, 1)}
    before = [steps[0].rows(step, 6) for step in range(30)]
    fresh = MixtureOrder([40, 9], 0, domain_rows=2)
    for step in (29, 0, 13):
        np.testing.assert_array_equal(fresh.rows(step, 6), before[step])
    assert any((steps[1].rows(step, 6) != before[step]).any() for step in range(3))


def test_a_batch_of_another_size_is_a_cut_of_the_same_sequence():
    order = MixtureOrder([40, 9], 0, domain_rows=2)
    halves = np.concatenate([order.rows(step, 6) for step in range(8)])
    whole = np.concatenate([order.rows(step, 12) for step in range(4)])
    np.testing.assert_array_equal(halves, whole)


def test_largest_remainders():
    # 7 x (.5, .3, .2) = 3.5, 2.1, 1.4: the one that is left goes to the first
    assert apportioned(7, [5, 3, 2]).tolist() == [4, 2, 1]
    assert apportioned(0, [1, 1]).tolist() == [0, 0]


def test_weights_follow_the_order_of_the_domains():
    assert weights_of({"b": 1, "a": 2}, ["a", "b"]) == [2.0, 1.0]
    assert weights_of({}, ["a", "b"]) is None


def test_errors():
    with pytest.raises(ValueError, match="domain_rows is 4; allowed: 1 to 3"):
        MixtureOrder([3, 9], 0, domain_rows=4)
    with pytest.raises(ValueError, match="batch_size is 9; allowed: a multiple of domain_rows, 2"):
        MixtureOrder([3, 9], 0, domain_rows=2).rows(0, 9)


def test_a_weight_that_comes_to_no_rows_is_named():
    with pytest.raises(
        ValueError, match=r"weights has 1 for domain 1, of 1001; allowed: enough for one of the 100"
    ):
        MixtureOrder([60, 40], 0, weights=[1000, 1])
