"""ASAp against its definition, computed from the set of its samples, and against enumerated distributions."""

import functools

import jax
import numpy as np
import pytest

from experiments.benchmarks.constrained_sampling import kl
from generative_retrieval import asap, sampling

_ROWS = (0, 1)


@pytest.fixture(scope="module")
def sampler(world):
    """The function `(iterations, particles) -> compiled sample` of two queries."""
    sample = functools.partial(asap.sample, world.speller(len(_ROWS)), world.trie)

    @functools.cache
    def sampler(iterations, particles):
        return jax.jit(functools.partial(sample, iterations=iterations, particles=particles))

    return sampler


def _learn(sampler, seed, futures, rows=_ROWS):
    """With 500 samples of each query."""
    return sampler(500, 1)(sampling.keys(seed, np.asarray(rows)), futures=futures)


def _defined(world, documents, live_N=None) -> np.ndarray:
    """log c of every node by the paper's definition: float64, with the beginnings of `documents` as S."""
    ids = [tuple(s for s in row if s >= 0) for row in world.symbols_NT.tolist()]
    live = [id_ for row, id_ in enumerate(ids) if live_N is None or live_N[row]]
    seen = {ids[row][:end] for row in documents for end in range(len(ids[row]))}
    begun = {id_[:end] for id_ in live for end in range(len(id_) + 1)}

    def c(beginning) -> float:
        if beginning not in begun or beginning not in seen:
            return float(beginning in begun)
        number = sum(symbol * world.size**place for place, symbol in enumerate(beginning))
        p_V = np.exp(world.log_p[len(beginning)][number])
        return sum(p_V[symbol] * c((*beginning, symbol)) for symbol in range(world.size))

    every = sorted({id_[:end] for id_ in ids for end in range(len(id_) + 1)}, key=lambda b: (len(b), b))
    return np.log([c(beginning) if beginning in begun else 1.0 for beginning in every])  # in order of nodes


@pytest.mark.slow
def test_what_is_learned_is_as_defined(world, sampler):
    samples, futures = _learn(sampler, 0, asap.nothing_learned(world.trie, 2))
    for row in range(2):
        expected_X = _defined(world, np.asarray(samples.documents_BK[row]).tolist())
        np.testing.assert_allclose(futures.log_c_BX[row], expected_X, atol=1e-5)


@pytest.mark.slow
def test_samples_of_one_iteration_are_learned_from_together_and_only_live_ones_drawn(world, sampler):
    subsets = np.random.default_rng(0).random((2, 24)) < 0.5
    live = world.trie.live(subsets, np.asarray([1, 0]))
    samples, futures = sampler(3, 4)(sampling.keys(0, np.asarray(_ROWS)), live=live)
    for row, live_N in enumerate(subsets[::-1]):
        documents = np.asarray(samples.documents_BK[row])
        assert documents.shape == (12,)
        assert live_N[documents].all()
        np.testing.assert_allclose(
            futures.log_c_BX[row], _defined(world, documents.tolist(), live_N), atol=1e-5
        )
        first = np.log(world.masked(live_N))[documents[:4]]  # before anything was learned
        np.testing.assert_allclose(samples.log_q_BK[row, :4], first, rtol=1e-4, atol=1e-5)
    barred = sampler(3, 4)(
        sampling.keys(0, np.asarray(_ROWS)), live=world.trie.live(subsets & False, np.asarray([1, 0]))
    )
    assert (np.asarray(barred[0].documents_BK) == -1).all()
    assert (np.asarray(barred[0].log_p_BK) == -np.inf).all()


def test_from_masking_to_the_models_own_distribution(world, sampler):
    nothing = asap.nothing_learned(world.trie, 2)
    np.testing.assert_allclose(world.after(nothing), world.masked(), rtol=1e-6)
    kls, futures = [kl(world.masked(), world.true())], nothing
    for call in range(8):
        learned = futures
        samples, futures = _learn(sampler, call, learned)
        kls.append(kl(world.after(futures), world.true()))
        # The first sample is drawn with what was learned before; all come with the model's own probability.
        documents = np.asarray(samples.documents_BK)
        drawn_by = np.log(world.after(learned))[documents[0, 0]]
        assert float(samples.log_q_BK[0, 0]) == pytest.approx(drawn_by, rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(samples.log_p_BK, world.log_p_of_ids()[documents], rtol=1e-5)
        # c only comes down, and never below how likely an id follows, which all documents together teach.
        assert (np.asarray(futures.log_c_BX) <= np.asarray(learned.log_c_BX) + 1e-6).all()
        assert (np.asarray(futures.log_c_BX) >= _defined(world, range(24))[None] - 1e-5).all()
    assert kls[0] > 0.05
    assert kls[0] > kls[1] > kls[-1]
    assert kls[-1] < 1e-3


def test_queries_do_not_depend_on_one_another(world, sampler):
    nothing = asap.nothing_learned(world.trie, 2)
    one, _ = _learn(sampler, 0, nothing)
    other, _ = _learn(sampler, 0, nothing, rows=(5, 0))
    np.testing.assert_array_equal(one.documents_BK[0], other.documents_BK[1])
    assert (np.asarray(one.documents_BK[0]) != np.asarray(other.documents_BK[0])).any()


@pytest.mark.parametrize("field", ["iterations", "particles"])
def test_a_number_out_of_range_is_named(world, field):
    arguments = dict(iterations=1, particles=1) | {field: 0}
    with pytest.raises(ValueError, match=f"{field} is 0; allowed: 1 or more"):
        asap.sample(world.speller(1), world.trie, sampling.keys(0, np.arange(1)), **arguments)
