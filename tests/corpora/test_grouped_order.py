"""The order of groups: rows of a group stand together, every example comes, weights are shares."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.grouped_order import GroupedOrder


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_blocks_are_of_one_group_and_no_example_comes_twice_before_all_of_its_group(
    data, block, groups, seed
):
    sizes = data.draw(st.lists(st.integers(block, 20), min_size=groups, max_size=groups))
    group_of = np.random.default_rng(seed).permutation(np.repeat(np.arange(groups), sizes))
    order = GroupedOrder(group_of, seed, block)
    rows = np.concatenate([order.rows(step, 2 * block) for step in range(30)])
    assert (group_of[rows].reshape(-1, block) == group_of[rows[::block], None]).all()
    for group, size in enumerate(sizes):
        mine = rows[group_of[rows] == group]
        for start in range(0, len(mine) - size + 1, size):
            assert sorted(mine[start : start + size]) == np.flatnonzero(group_of == group).tolist()
    fresh = GroupedOrder(group_of, seed, block)  # a step does not depend on those before it
    np.testing.assert_array_equal(fresh.rows(17, 2 * block), rows[34 * block : 36 * block])


def test_weights_are_the_shares_of_a_round_and_0_leaves_a_group_out():
    group_of = np.arange(40) % 4
    order = GroupedOrder(group_of, 0, 5, weights=[1, 2, 1, 0])
    counts = np.bincount(group_of[order.rows(0, 40)], minlength=4)
    assert counts.tolist() == [10, 20, 10, 0]


def test_small_groups_and_a_wrong_number_of_weights_are_refused():
    group_of = np.array([0, 0, 0, 1, 1])
    with pytest.raises(
        ValueError, match=r"group_rows is 3; allowed: at most 2, .* of the 2 groups \(number 1\)"
    ):
        GroupedOrder(group_of, 0, 3)
    with pytest.raises(ValueError, match="weights has 3 numbers; allowed: 2, one a group"):
        GroupedOrder(group_of, 0, 2, weights=[1, 1, 1])
