"""Sequential Monte Carlo against enumerated distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.constrained_sampling import kl, pooled, share
from generative_retrieval import rejection, sampling, smc

_WEIGHTS = np.asarray([0.1, 0.0, 0.45, 0.05, 0.4])
_SUBSETS = np.stack([np.ones(24, bool), np.random.default_rng(0).random(24) < 0.3, np.zeros(24, bool)])
# 2,000 samples a document in queries of 200; some queries with a subset, and one with none.
_BATCH = 240
_SUBSET_OF_QUERY = [0] * _BATCH + [1] * 60 + [2]


@pytest.fixture(scope="module")
def many(world):
    """The function `(draw, first=0) -> smc.Weighted` of the queries from number `first`."""
    live = world.trie.live(_SUBSETS, np.asarray(_SUBSET_OF_QUERY))
    sample = functools.partial(smc.sample, world.speller(len(_SUBSET_OF_QUERY)), world.trie)

    @functools.cache
    def sampler(draw):
        return jax.jit(functools.partial(sample, particles=200, draw=draw, threshold=0.9))

    @functools.cache
    def found(draw, first=0):
        return sampler(draw)(sampling.keys(0, first + np.arange(len(_SUBSET_OF_QUERY))), live=live)

    return found


def _shares(found, rows) -> np.ndarray:
    """What the particles of some queries, which are alike, stand for together."""
    found = jax.tree.map(lambda leaf: leaf[rows], found)
    return share(np.asarray(found.documents_BK), pooled(found), 24)


@pytest.mark.slow
def test_weighted_rejection_approaches_the_models_distribution(world, many):
    found = many(rejection.weighted)
    assert kl(world.masked(), world.true()) > 0.05
    assert kl(_shares(found, slice(_BATCH)), world.true()) < 1e-3
    weights_BK = np.exp(np.asarray(found.log_weights_BK[:-1]))
    np.testing.assert_allclose(weights_BK.sum(axis=1), 1, rtol=1e-4)
    normalizers_B = np.exp(np.asarray(found.log_normalizer_B[:_BATCH], np.float64))
    error = 4 * float(normalizers_B.std()) / _BATCH**0.5
    assert normalizers_B.mean() == pytest.approx(np.exp(world.log_p_of_ids()).sum(), abs=error)


@pytest.mark.slow
def test_unweighted_rejection_is_plain_masking(world, many):
    found = many(rejection.unweighted)
    assert kl(_shares(found, slice(_BATCH)), world.masked()) < 1e-3
    np.testing.assert_allclose(found.log_normalizer_B[:_BATCH], 0, atol=1e-5)


def test_only_live_documents_are_drawn(world, many):
    found = many(rejection.weighted)
    documents = np.asarray(found.documents_BK)
    assert _SUBSETS[1][documents[_BATCH:-1]].all()
    assert kl(_shares(found, slice(_BATCH, -1)), world.true(_SUBSETS[1])) < 5e-3  # 12,000 samples
    assert (documents[-1] == -1).all()
    assert (np.asarray(found.log_weights_BK[-1]) == -np.inf).all()
    assert np.asarray(found.log_normalizer_B[-1]) == -np.inf


@pytest.mark.slow
def test_evaluations_are_those_of_the_symbols_drawn(world, many):
    weighted, unweighted = many(rejection.weighted), many(rejection.unweighted)
    lengths_N = (world.symbols_NT >= 0).sum(axis=1)
    for query in range(3):
        symbols = int(lengths_N[np.asarray(unweighted.documents_BK[query])].sum())
        assert symbols <= int(unweighted.evaluations_B[query]) < symbols * world.size
    sums = [float(found.evaluations_B[:_BATCH].sum()) for found in (unweighted, weighted)]
    assert sums[0] < sums[1]


def test_resampling_keeps_particles_whole(world, many):
    """Wherever a particle comes from, its document has the probability of its own id."""
    found = many(rejection.weighted)
    documents = np.asarray(found.documents_BK[:-1])
    np.testing.assert_allclose(found.log_p_BK[:-1], world.log_p_of_ids()[documents], rtol=1e-5)


def test_a_query_depends_on_its_row_alone(many):
    found, later = many(rejection.weighted), many(rejection.weighted, first=3)
    np.testing.assert_array_equal(later.documents_BK[5], found.documents_BK[8])
    assert (np.asarray(later.documents_BK[5]) != np.asarray(found.documents_BK[5])).any()


def test_systematic_draws_are_rounded_shares():
    draw = jax.jit(jax.vmap(smc.systematic, (0, None)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 100), jnp.log(_WEIGHTS) + 3))
    counts = np.stack([np.bincount(row, minlength=5) for row in drawn])
    assert (counts >= np.floor(5 * _WEIGHTS - 1e-6)).all()
    assert (counts <= np.ceil(5 * _WEIGHTS + 1e-6)).all()


@pytest.mark.parametrize("resample", [smc.systematic, smc.multinomial])
def test_draws_have_the_weights_as_their_mean(resample):
    draw = jax.jit(jax.vmap(resample, (0, None)))
    drawn = draw(jax.random.split(jax.random.key(0), 4_000), jnp.log(_WEIGHTS))
    np.testing.assert_allclose(np.bincount(np.ravel(drawn), minlength=5) / drawn.size, _WEIGHTS, atol=0.015)


@pytest.mark.parametrize(("field", "value"), [("particles", 0), ("threshold", 1.5), ("threshold", -0.1)])
def test_a_number_out_of_range_is_named(world, field, value):
    arguments = dict(particles=1) | {field: value}
    with pytest.raises(ValueError, match=f"{field} is {value}; allowed"):
        smc.sample(world.speller(1), world.trie, sampling.keys(0, np.arange(1)), **arguments)
