import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe import inspection
from moe.inspection import Edges
from moe.routing import Choice


def made(pairs, num_tokens, lost=()):
    """Edges of (token, expert) pairs; those whose place in the list is in `lost` were not served."""
    token, expert = np.array(pairs, np.int64).reshape(-1, 2).T
    keep = ~np.isin(np.arange(len(token)), list(lost))
    return Edges(token, expert, keep, num_tokens)


# Six tokens with two choices each, of four experts. Tokens 0, 1, 2 are of one label, 3 and 4 of another, and
# token 5 of none. Token 4 lost its second choice.
PAIRS = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 2), (3, 3), (3, 2), (4, 3), (4, 0), (5, 1), (5, 2)]
SIX = made(PAIRS, 6, lost=[9])
LABEL = np.array([7, 7, 7, 9, 9, -1])


def test_tokens_of_groups_are_numbered_through_the_batch():
    choice = Choice(
        token=jnp.array([[0, 0, 1, 1], [1, 0, 2, 2]]),
        expert=jnp.array([[5, 1, 0, 2], [3, 3, 1, 0]]),
        keep=jnp.array([[True, True, False, True], [True, True, True, False]]),
        num_experts=6,
    )
    of = inspection.edges(choice, num_tokens=6)  # two groups of three
    assert of.token.tolist() == [0, 0, 1, 1, 4, 3, 5, 5]
    assert of.expert.tolist() == [5, 1, 0, 2, 3, 3, 1, 0]
    assert of.keep.tolist() == [True, True, False, True, True, True, True, False]

    some = inspection.edges(choice, 6, np.array([[True, False, True, False], [False, False, False, True]]))
    assert some.token.tolist() == [0, 1, 5]
    assert some.expert.tolist() == [5, 0, 0]
    assert some.keep.tolist() == [True, False, False]


def test_batches_are_numbered_on():
    joined = inspection.join([made([(0, 1), (3, 2)], 4, lost=[1]), made([(1, 0)], 2)])
    assert joined.token.tolist() == [0, 3, 5]
    assert joined.expert.tolist() == [1, 2, 0]
    assert joined.keep.tolist() == [True, False, True]
    assert joined.num_tokens == 6


def test_load_counts_what_was_chosen_or_served():
    assert inspection.load(SIX, 5).tolist() == [4, 3, 3, 2, 0]
    assert inspection.load(SIX.served(), 5).tolist() == [3, 3, 3, 2, 0]


def test_imbalance():
    assert inspection.imbalance(np.array([3, 3, 3])) == (0.0, 1.0)
    # Mean 2, deviations 1, 1, -2, 0: variance 6 / 4.
    assert inspection.imbalance(np.array([3, 3, 0, 2])) == pytest.approx((1.5**0.5 / 2, 1.5))
    assert inspection.imbalance(np.array([0, 0])) == (0.0, 1.0)


def test_dropped_by_position():
    # Positions 0 to 2 twice; only position 1 of the second text lost one of its two edges, so 1 of 4.
    position = np.array([0, 1, 2, 0, 1, 2])
    assert inspection.dropped(SIX, position, 3).tolist() == [0, 0.25, 0]


def test_dropped_leaves_out_tokens_without_a_label():
    lost = made(PAIRS, 6, lost=[10, 11])
    assert inspection.dropped(lost, np.array([0, 0, 0, 0, 0, -1]), 2).tolist()[0] == 0
    assert np.isnan(inspection.dropped(lost, np.array([0, 0, 0, 0, 0, -1]), 2)[1])


def test_unserved_counts_tokens_without_an_expert():
    # Token 3 lost both of its edges, token 4 one.
    lost = made(PAIRS, 6, lost=[6, 7, 9])
    found = inspection.unserved(lost, np.array([0, 0, 1, 1, 1, -1]), 3)
    assert found[:2].tolist() == [0, pytest.approx(1 / 3)]
    assert np.isnan(found[2])


def test_specialization_by_hand():
    found = inspection.specialization(SIX.served(), LABEL, 4)
    assert found.labels.tolist() == [7, 9]
    assert found.tokens.tolist() == [3, 2]
    assert found.count.tolist() == [[3, 2, 1, 0], [0, 0, 1, 2]]
    np.testing.assert_allclose(found.frequency, [[1, 2 / 3, 1 / 3, 0], [0, 0, 1 / 2, 1]])
    assert found.top_share == 1.0  # expert 0 serves all tokens of label 7, and expert 3 all of label 9

    h = lambda *p: -sum(x * np.log(x) for x in p)
    within = (6 * h(1 / 2, 1 / 3, 1 / 6) + 3 * h(1 / 3, 2 / 3)) / 9
    whole = h(3 / 9, 2 / 9, 2 / 9, 2 / 9)
    assert found.entropy == pytest.approx(within / np.log(4))
    assert found.information == pytest.approx(1 - within / whole)


def test_rare_labels_are_left_out():
    found = inspection.specialization(SIX, LABEL, 4, least=3)
    assert found.labels.tolist() == [7]
    assert found.count.tolist() == [[3, 2, 1, 0]]
    both = inspection.specialization(SIX, LABEL, 4)
    assert both.count.tolist() == [[3, 2, 1, 0], [1, 0, 1, 2]]  # with the choice of token 4 that was lost


def test_no_label_is_common_enough():
    found = inspection.specialization(SIX, LABEL, 4, least=4)
    assert (len(found.labels), found.top_share, found.entropy, found.information) == (0, 0.0, 0.0, 0.0)


def test_a_label_that_says_which_expert_explains_all_and_one_that_does_not_nothing():
    one_each = made([(0, 0), (1, 0), (2, 1), (3, 1)], 4)
    told = inspection.specialization(one_each, np.array([5, 5, 6, 6]), 2)
    assert (told.information, told.entropy, told.top_share) == (1.0, 0.0, 1.0)
    untold = inspection.specialization(one_each, np.array([5, 6, 5, 6]), 2)
    assert untold.information == pytest.approx(0)
    assert (untold.entropy, untold.top_share) == (pytest.approx(1), 0.5)


def test_shuffling_keeps_how_many_tokens_a_label_has_and_who_has_none():
    label = np.array([3, -1, 3, 4, 5, -1, 5, 5] * 20)
    dealt = inspection.shuffled(label, seed=1)
    assert sorted(dealt) == sorted(label)
    np.testing.assert_array_equal(dealt == -1, label == -1)
    assert (dealt != label).any()
    np.testing.assert_array_equal(inspection.shuffled(label, seed=1), dealt)


def test_texts_are_shuffled_as_wholes():
    text = np.repeat(np.arange(50), 4)
    label = np.where(np.arange(200) % 4 == 3, -1, text % 5)  # the last token of a text is padding
    dealt = inspection.shuffled(label, text, seed=2)
    np.testing.assert_array_equal(dealt == -1, label == -1)
    by_text = dealt.reshape(50, 4)[:, :3]
    assert (by_text == by_text[:, :1]).all()
    assert (np.bincount(by_text[:, 0]) == 10).all()
    assert (dealt != label).any()


def test_shuffled_labels_explain_next_to_nothing():
    label = np.arange(4000) % 4
    of = made([(t, label[t]) for t in range(4000)], 4000)
    assert inspection.specialization(of, label, 4).information == pytest.approx(1)
    assert inspection.specialization(of, inspection.shuffled(label), 4).information < 0.01


def test_agreement():
    theirs = made([(0, 1), (0, 0), (1, 2), (1, 1), (2, 3), (2, 1)], 3)
    ours = made([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 2)], 3)  # 2, 1 and 0 in common, of 2 each
    assert inspection.agreement(ours, theirs) == 0.5
    assert inspection.agreement(ours, ours) == 1.0
    dropped = made([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 2)], 3, lost=[0])
    assert inspection.agreement(dropped, theirs) == 0.5
    assert inspection.agreement(dropped.served(), theirs) == 0.4  # (0, 1) and (1, 1) of five
    with pytest.raises(ValueError, match="of 3 and 6 tokens; allowed: the same"):
        inspection.agreement(ours, SIX)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_numbering_experts_anew_changes_no_measure(seed, experts):
    rng = np.random.default_rng(seed)
    pairs = [(t, e) for t in range(20) for e in rng.permutation(experts)[: 1 + rng.integers(experts)]]
    of, label = made(pairs, 20), rng.integers(-1, 4, 20)
    order = rng.permutation(experts)
    renamed = Edges(of.token, order[of.expert], of.keep, of.num_tokens)
    one, other = (inspection.specialization(x, label, experts) for x in (of, renamed))
    for name in ("top_share", "entropy", "information"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-12)
        assert -1e-12 <= getattr(one, name) <= 1 + 1e-12
    np.testing.assert_array_equal(one.count[:, np.argsort(order)], other.count)


def test_similarity_of_experts():
    kernel = np.array([[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]])
    bias = np.array([[0.0], [0.0], [1.0], [0.0]])
    root = 0.5**0.5
    found = inspection.similarity([kernel, bias])
    np.testing.assert_allclose(found, [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], rtol=1e-6)
    assert inspection.between(found) == pytest.approx(2 / 12)
    slanted = inspection.similarity([np.array([[1.0, 0.0], [1.0, 1.0]])])
    np.testing.assert_allclose(slanted, [[1, root], [root, 1]], rtol=1e-6)
    assert inspection.between(np.ones((1, 1))) == 1.0
