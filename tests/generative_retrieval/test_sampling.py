"""Plain masking against its enumerated distribution."""

import functools

import jax
import numpy as np
import pytest

from experiments.benchmarks.constrained_sampling import World, kl, share
from generative_retrieval import sampling
from generative_retrieval.trie import Live

_SUBSETS = np.stack([np.ones(24, bool), np.random.default_rng(0).random(24) < 0.3, np.zeros(24, bool)])
_ALL, _SOME, _NONE = range(3)


def _live(world, of_query_B) -> Live:
    return world.trie.live(_SUBSETS, np.asarray(of_query_B))


def _sampled(world, rows, live=None, **arguments):
    sample = functools.partial(sampling.sample, world.speller(len(rows)), world.trie, **arguments)
    return jax.jit(sample)(sampling.keys(0, np.asarray(rows)), live=live)


@pytest.fixture(scope="module")
def many(world):
    """66 queries with 64 samples each: two with some documents, the last with none."""
    live = _live(world, [_ALL] * 63 + [_SOME] * 2 + [_NONE])
    return _sampled(world, range(66), live, particles=64)


def test_distribution_is_the_enumerated_one(world, many):
    found = many
    documents = np.asarray(found.documents_BK[:63])
    np.testing.assert_allclose(found.log_p_BK[:63], world.log_p_of_ids()[documents], rtol=1e-5)
    np.testing.assert_allclose(found.log_q_BK[:63], np.log(world.masked())[documents], rtol=1e-4, atol=1e-5)
    shares_N = share(documents, np.zeros(documents.shape), 24)
    assert kl(shares_N, world.masked()) < 2 * 23 / (2 * documents.size)  # twice that of perfect samples
    weights = np.exp(np.asarray(found.log_p_BK - found.log_q_BK, np.float64))[:63]
    error = 4 * float(weights.std()) / documents.size**0.5
    assert weights.mean() == pytest.approx(np.exp(world.log_p_of_ids()).sum(), abs=error)


def test_masking_is_far_from_the_model(world):
    assert kl(world.masked(), world.true()) > 0.05


def test_only_live_documents_are_drawn(world, many):
    documents = np.asarray(many.documents_BK)
    assert _SUBSETS[_SOME][documents[63:65]].all()
    expected = np.log(world.masked(_SUBSETS[_SOME])[documents[63:65]])
    np.testing.assert_allclose(many.log_q_BK[63:65], expected, rtol=1e-4, atol=1e-5)
    assert (documents[65] == -1).all()
    assert (np.asarray(many.log_p_BK[65]) == -np.inf).all()


@pytest.mark.slow
def test_a_sample_depends_on_its_row_and_number_alone(world, many):
    alone = _sampled(world, [7], particles=3)
    np.testing.assert_array_equal(alone.documents_BK[0], many.documents_BK[7, :3])
    assert len({tuple(row) for row in np.asarray(many.documents_BK[:63]).tolist()}) == 63


def test_greedy_takes_the_likeliest_that_leads_on(world):
    found = jax.jit(lambda: sampling.greedy(world.speller(1), world.trie))()
    left, log_p = np.arange(24), 0.0
    for depth in range(4):
        symbols = world.symbols_NT[left, depth]
        if (symbols < 0).any():
            break
        log_p_V = world.log_p[depth][world.beginnings_NT[left[0], depth]]
        best = symbols[log_p_V[symbols].argmax()]
        log_p, left = log_p + log_p_V[best], left[symbols == best]
    assert found.documents_BK.tolist() == [left.tolist()]
    assert float(found.log_p_BK[0, 0]) == pytest.approx(log_p, rel=1e-5)
    assert float(found.log_q_BK[0, 0]) == pytest.approx(np.log(world.masked()[left[0]]), rel=1e-4)


@pytest.mark.slow
def test_temperature_divides_log_probabilities(world):
    found = _sampled(world, [0], particles=32, temperature=2.0)
    halved = World(world.symbols_NT, tuple(table / 2 for table in world.logits))
    documents = np.asarray(found.documents_BK)
    np.testing.assert_allclose(found.log_q_BK, np.log(halved.masked())[documents], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.log_p_BK, world.log_p_of_ids()[documents], rtol=1e-5)


@pytest.mark.parametrize("field", ["particles", "temperature"])
def test_a_number_out_of_range_is_named(world, field):
    arguments = dict(particles=1) | {field: 0}
    with pytest.raises(ValueError, match=f"{field} is 0; allowed"):
        sampling.sample(world.speller(1), world.trie, sampling.keys(0, np.arange(1)), **arguments)
