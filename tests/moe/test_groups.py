"""How a batch is cut into groups."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe import groups
from moe.feed_forward import Context


def test_a_group_is_so_many_sequences_one_after_the_other():
    x_BLD = jnp.arange(4 * 3 * 2, dtype=jnp.float32).reshape(4, 3, 2)
    context = Context(
        valid=jnp.ones((4, 3), bool), tokens=jnp.arange(12).reshape(4, 3), domains=jnp.array([5, 6, 7, 8])
    )
    x_GSD, tokens = groups.group(x_BLD, context, 2)
    assert x_GSD.shape == (2, 6, 2)
    np.testing.assert_array_equal(x_GSD.reshape(4, 3, 2), x_BLD)
    assert tokens.rows.tolist() == [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3]]
    assert tokens.positions.tolist() == [[0, 1, 2, 0, 1, 2]] * 2
    assert tokens.domains.tolist() == [[5, 5, 5, 6, 6, 6], [7, 7, 7, 8, 8, 8]]
    assert tokens.tokens.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_the_whole_batch_can_be_one_group():
    x_BLD = jnp.zeros((4, 3, 2))
    x_GSD, tokens = groups.group(x_BLD, Context(valid=jnp.ones((4, 3), bool)), None)
    assert x_GSD.shape == (1, 12, 2)
    assert tokens.tokens is None
    assert tokens.domains is None


@pytest.mark.parametrize("rows", [0, 3, 5])
def test_group_rows_must_divide_the_batch(rows):
    with pytest.raises(ValueError, match=f"group_rows is {rows}; allowed: a divisor of the batch's 4 rows"):
        groups.group(jnp.zeros((4, 3, 2)), Context(valid=jnp.ones((4, 3), bool)), rows)
