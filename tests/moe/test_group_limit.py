"""Choosing groups of experts before experts."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe.group_limit import GroupLimit

SCORES = jnp.array([[[0.9, 0.0, 0.6, 0.5, 0.7, 0.1]]])  # groups {0, 1}, {2, 3}, {4, 5}


def left(limit, k=1):
    return np.flatnonzero(np.isfinite(np.asarray(limit(SCORES, k))[0, 0])).tolist()


def test_groups_by_hand():
    # By the best score: 0.9, 0.6, 0.7. By the sum of two: 0.9, 1.1, 0.8.
    assert left(GroupLimit(3, 1)) == [0, 1]
    assert left(GroupLimit(3, 2)) == [0, 1, 4, 5]
    assert left(GroupLimit(3, 1, best=2)) == [2, 3]
    assert left(GroupLimit(3, 2, best=2)) == [0, 1, 2, 3]
    assert left(GroupLimit(3, 3)) == [0, 1, 2, 3, 4, 5]


def test_scores_stay_as_they_are():
    found = np.asarray(GroupLimit(3, 2)(SCORES - 2, 3))[0, 0]  # below 0, as with a large negative bias
    np.testing.assert_array_equal(found[[0, 1, 4, 5]], np.asarray(SCORES - 2)[0, 0, [0, 1, 4, 5]])


@pytest.mark.parametrize(
    ("fields", "k", "said"),
    [
        (dict(num_groups=4, topk_groups=5), 1, "topk_groups is 5; allowed: 1 to num_groups, 4"),
        (dict(num_groups=4, topk_groups=0), 1, "topk_groups is 0; allowed"),
        (dict(num_groups=3, topk_groups=1, best=0), 1, "best is 0; allowed: an integer of at least 1"),
        (dict(num_groups=4, topk_groups=1), 1, "num_groups is 4; allowed: a divisor of 6 experts"),
        (dict(num_groups=3, topk_groups=1, best=3), 1, "best is 3; allowed: 1 to the 2 experts of a group"),
        (dict(num_groups=3, topk_groups=1), 3, "k is 3; allowed: 1 to 2, the experts of 1 groups"),
    ],
)
def test_what_does_not_fit_is_refused(fields, k, said):
    with pytest.raises(ValueError, match=said):
        GroupLimit(**fields)(SCORES, k)
