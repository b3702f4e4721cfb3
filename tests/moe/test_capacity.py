"""Who is served when there is no room for all."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe import capacity
from moe.capacity import Capacity
from moe.leakage import Dependence
from moe.routing import Routing, token_choice
from training.build import build


def routing(keep=True):
    """Three tokens, two choices each; expert 0 is wanted by token 0 (second), 1 (first) and 2 (first)."""
    expert = jnp.array([[[1, 0], [0, 2], [0, 1]]])
    weight = jnp.array([[[0.6, 0.4], [0.7, 0.3], [0.9, 0.1]]])
    return token_choice(expert, weight, jnp.asarray(keep)[None, None, None], 3)


def served(priority, slots):
    edges = routing()
    place = capacity.places(edges, capacity.order(edges, priority))
    kept = np.asarray(place < slots)[0]
    return {(int(t), int(e)) for t, e, k in zip(edges.token[0], edges.expert[0], kept, strict=True) if k}


def test_with_one_place_an_expert_serves_the_first_by_its_priority():
    # by position: token 0 comes first at expert 0, though it is only its second choice
    assert served(capacity.by_position, 1) == {(0, 1), (0, 0), (1, 2)}
    # by choice: first choices go before, so token 1 has expert 0
    assert served(capacity.by_choice, 1) == {(0, 1), (1, 0), (1, 2)}
    # by score: of the first choices of expert 0 token 2 has the larger weight
    assert served(capacity.by_score, 1) == {(0, 1), (2, 0), (1, 2)}


def test_slots_come_from_the_config_and_not_from_the_padding():
    edges = routing()
    assert Capacity(factor=1.0, tokens=3).slots(edges, train=True) == 2  # ceil(1 * 2 * 3 / 3)
    assert Capacity(factor=1.25, tokens=2).slots(edges, train=True) == 2  # ceil(1.25 * 2 * 2 / 3)
    assert Capacity(factor=9.0, tokens=3).slots(edges, train=True) == 3  # a token comes once: S is enough
    many = token_choice(jnp.zeros((1, 100, 2), int), jnp.ones((1, 100, 2)), jnp.ones((1, 1, 1), bool), 10)
    assert Capacity(factor=1.1, tokens=100).slots(many, train=True) == 22  # in floats a little more
    both = Capacity(factor=0.5, tokens=3, evaluation_factor=1.5)
    assert (both.slots(edges, train=True), both.slots(edges, train=False)) == (1, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": 0.0, "tokens": 4}, "factor is 0.0; allowed: a positive number"),
        ({"factor": 1.0, "tokens": -1}, "tokens is -1"),
        ({"factor": 1.0, "tokens": 4, "evaluation_factor": 0}, "evaluation_factor is 0"),
    ],
)
def test_what_is_no_capacity_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Capacity(**fields)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(1, 1), (30, 5)]))
def test_places_count_the_edges_of_each_expert_in_order(seed, sizes):
    edges, experts = sizes  # few shapes: each is compiled
    draw = np.random.default_rng(seed)
    expert, keep = draw.integers(experts, size=(2, edges)), draw.random((2, edges)) < 0.7
    token = draw.integers(4, size=(2, edges))
    list_ = Routing(
        *(jnp.asarray(x, jnp.int32) for x in (token, expert)), jnp.ones((2, edges)), jnp.asarray(keep),
        None, None, num_experts=experts, num_tokens=4,
    )  # fmt: skip
    place = np.asarray(capacity.places(list_, capacity.order(list_)))
    for group in range(2):
        for e in range(experts):
            ours = np.flatnonzero((expert[group] == e) & keep[group])
            first = ours[np.argsort(token[group][ours], kind="stable")]
            assert place[group][first].tolist() == list(range(len(ours)))
    assert np.asarray(capacity.counts(list_)).tolist() == [
        np.bincount(expert[g][keep[g]], minlength=experts).tolist() for g in range(2)
    ]


def test_a_priority_that_a_config_names_is_known_for_what_it_is():
    spec = dict(name="moe.capacity.Capacity", factor=1.0, tokens=4)
    for name, later in (("by_position", False), ("by_choice", True)):
        made = build(spec | dict(priority=dict(name=f"moe.capacity.{name}")))
        assert made.dependence(train=True) == Dependence(later=later, earlier=True)
