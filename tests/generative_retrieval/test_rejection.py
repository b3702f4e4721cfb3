"""Rejection sampling for every set of accepted symbols and every order in which symbols can be tried."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generative_retrieval import rejection

_P = np.asarray([0.4, 0.3, 0.15, 0.1, 0.05])
_ORDERS = np.asarray(list(itertools.permutations(range(len(_P)))))
_ACCEPTED_BV = np.asarray(list(itertools.product([False, True], repeat=len(_P))))
_MASSES_B = _ACCEPTED_BV @ _P


def _chance(order) -> float:
    """Of an order of symbols drawn without replacement."""
    chance, left = 1.0, 1.0
    for symbol in order:
        chance *= _P[symbol] / left
        left -= _P[symbol]
    return chance


_CHANCES = np.asarray([_chance(order) for order in _ORDERS])


@functools.cache
def _drawn(draw) -> rejection.Drawn:
    """A query for each set of accepted symbols; a particle for each order, which the noise brings about."""

    @jax.jit
    def run(log_p_BKV, noise_BKV):
        accepted_BV = jnp.asarray(_ACCEPTED_BV)
        return draw(log_p_BKV, noise_BKV, lambda tried_BK: jnp.take_along_axis(accepted_BV, tried_BK, axis=1))

    log_p_BKV = np.broadcast_to(np.log(_P), (len(_ACCEPTED_BV), *_ORDERS.shape)).astype(np.float32)
    noise_BKV = (-np.argsort(_ORDERS, axis=1)[None] - log_p_BKV).astype(np.float32)
    return rejection.Drawn(*map(np.asarray, run(log_p_BKV, noise_BKV)))


def test_weights_are_proper_whatever_is_accepted():
    assert _CHANCES.sum() == pytest.approx(1)
    drawn = _drawn(rejection.weighted)
    weights_BK = np.exp(drawn.log_weights_BK)
    np.testing.assert_allclose(weights_BK @ _CHANCES, _MASSES_B, rtol=1e-5)
    for symbol, p in enumerate(_P):  # in proportion to the model's own probabilities
        means_B = np.where(drawn.symbols_BK == symbol, weights_BK, 0) @ _CHANCES
        np.testing.assert_allclose(means_B, np.where(_ACCEPTED_BV[:, symbol], p, 0), rtol=1e-5)


def test_the_mean_weight_is_the_same_whatever_was_drawn_and_rejected():
    drawn = _drawn(rejection.weighted)
    for row in range(1, len(_MASSES_B)):
        drawn_from = zip(drawn.symbols_BK[row].tolist(), _ORDERS.tolist(), strict=True)
        cases = [(symbol, *sorted(order[: order.index(symbol)])) for symbol, order in drawn_from]
        for case in set(cases):
            chances = np.where([other == case for other in cases], _CHANCES, 0)
            mean = (chances * np.exp(drawn.log_weights_BK[row])).sum() / chances.sum()
            assert mean == pytest.approx(_MASSES_B[row], rel=1e-5)


def test_unweighted_is_plain_masking():
    drawn = _drawn(rejection.unweighted)
    for symbol, p in enumerate(_P):
        shares_B = (drawn.symbols_BK == symbol) @ _CHANCES
        masked_B = np.where(_ACCEPTED_BV[1:, symbol], p, 0) / _MASSES_B[1:]
        np.testing.assert_allclose(shares_B[1:], masked_B, rtol=1e-6)
    assert (drawn.log_weights_BK[1:] == 0).all()


def test_evaluations_are_counted():
    tried_BK = _ACCEPTED_BV[:, _ORDERS].argmax(axis=2) + 1
    tried_BK[0] = len(_P)  # nothing is accepted
    np.testing.assert_array_equal(_drawn(rejection.unweighted).evaluations_BK, tried_BK)
    one_more_BK = np.minimum(tried_BK + 1, len(_P))  # the next symbol, where there is one
    np.testing.assert_array_equal(_drawn(rejection.weighted).evaluations_BK, one_more_BK)


@pytest.mark.parametrize("draw", [rejection.weighted, rejection.unweighted])
def test_where_nothing_is_accepted_there_is_no_weight(draw):
    assert not _ACCEPTED_BV[0].any()
    assert (_drawn(draw).log_weights_BK[0] == -np.inf).all()


def test_symbols_that_the_model_never_writes_are_not_tried():
    log_p_BKV = jnp.log(jnp.asarray([[[0.5, 0.0, 0.5]]]))
    run = jax.jit(lambda log_p_BKV: rejection.weighted(log_p_BKV, log_p_BKV, lambda tried_BK: tried_BK == 1))
    drawn = run(log_p_BKV)
    assert drawn.log_weights_BK.item() == -np.inf
    assert drawn.evaluations_BK.item() == 2
