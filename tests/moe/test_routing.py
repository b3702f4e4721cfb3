"""Edge lists, and random keys that belong to tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import groups
from moe.feed_forward import Context
from moe.routing import Choice, replayed_choices, token_choice, token_keys


def test_edges_of_a_token_choice_stand_token_by_token():
    expert_GSK = jnp.array([[[2, 0], [1, 2], [0, 1]]])
    weight_GSK = jnp.array([[[0.6, 0.4], [0.7, 0.3], [0.9, 0.1]]])
    routing = token_choice(expert_GSK, weight_GSK, jnp.array([[[True], [False], [True]]]), 3)
    assert routing.token.tolist() == [[0, 0, 1, 1, 2, 2]]
    assert routing.expert.tolist() == [[2, 0, 1, 2, 0, 1]]
    assert routing.keep.tolist() == [[True, True, False, False, True, True]]
    assert (routing.choices, routing.num_tokens, routing.num_experts) == (2, 3, 3)
    expert, keep = replayed_choices(routing.choice, (1, 3, 2))
    np.testing.assert_array_equal(expert, expert_GSK)
    assert keep.shape == (1, 3, 2)


def test_a_recording_of_other_tokens_is_refused():
    edges = jnp.zeros((1, 6), jnp.int32)
    recorded = Choice(edges, edges, edges > 0, 3)
    for shape in ((1, 4, 2), (1, 6, 2), (1, 3, 1), (2, 3, 2)):
        with pytest.raises(ValueError, match=r"has the shape \(1, 6\); allowed: "):
            replayed_choices(recorded, shape)


def test_a_tokens_key_depends_on_its_row_and_position_alone():
    """Neither the groups nor a longer padding changes it, and no two tokens share one."""

    def keys(length, group_rows):
        context = Context(valid=jnp.ones((4, length), bool))
        _, tokens = groups.group(jnp.zeros((4, length, 1)), context, group_rows)
        found = jax.random.key_data(token_keys(jax.random.key(3), tokens))
        return np.asarray(found).reshape(4, length, -1)

    short = keys(5, 1)
    np.testing.assert_array_equal(keys(8, 2)[:, :5], short)
    np.testing.assert_array_equal(keys(5, None), short)
    assert len(np.unique(short.reshape(20, -1), axis=0)) == 20
