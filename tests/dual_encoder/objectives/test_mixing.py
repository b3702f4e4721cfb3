import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_encoder.objectives import mixing
from dual_encoder.objectives.focal import focal_info_nce
from dual_encoder.objectives.mixing import mixed_info_nce


def slow_mixed(q, d, labels, where, temperature, rng, weights, pairs, list_mix, gamma, drawn, fixed):
    """The formula. `drawn` says which two are mixed, and how, `fixed` are the list's weights."""
    listed = len(d) // len(q)
    there = listed_where(q, d, where)
    total = 0.0
    for b in range(len(q)):
        negatives = d[b * listed + 1 : (b + 1) * listed]
        mixed = []
        if pairs and there[b].sum() > 1:
            mixed += [drawn[b, m] @ negatives for m in range(pairs)]
        if list_mix and there[b].any():
            mixed.append(fixed[b] @ negatives)
        exps = {n: np.exp(q[b] @ d[n] / temperature) for n in range(len(d)) if where[b, n]}
        z = sum(exps.values()) + sum(np.exp(q[b] @ m / np.linalg.norm(m) / temperature) for m in mixed)
        p = exps[labels[b]] / z
        total -= weights[b] * (1 - p) ** gamma * np.log(p)
    return total / len(q)


def listed_where(q, d, where):
    listed = len(d) // len(q)
    return np.stack([where[b, b * listed + 1 : (b + 1) * listed] for b in range(len(q))])


def list_weights(q, d, where, temperature):
    """softmax of a query's listed negatives that are there."""
    listed, found = len(d) // len(q), []
    for b in range(len(q)):
        columns = range(b * listed + 1, (b + 1) * listed)
        exps = np.array([np.exp(q[b] @ d[n] / temperature) * where[b, n] for n in columns])
        found.append(exps / max(exps.sum(), 1e-30))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [dict(pairs=1, list_mix=True), pytest.param(dict(pairs=2, list_mix=False), marks=pytest.mark.slow)],
)
def test_equals_the_formula(options, example, assert_follows):
    # The weights of the list are constants for the gradient: those of the vectors as they are.
    with jax.enable_x64():
        q, d, given = example(4)
        where = np.asarray(given["where"])
        there = jnp.asarray(listed_where(q, d, where))
        drawn = np.asarray(mixing._pair_weights(given["rng"], there, options["pairs"])[0])
    fixed = list_weights(q, d, where, 0.5)
    formula = functools.partial(slow_mixed, **options, gamma=0.5, drawn=drawn, fixed=fixed)
    assert_follows(functools.partial(mixed_info_nce, **options), formula, 4)


@pytest.mark.slow
def test_two_of_those_that_are_there_are_mixed():
    there_BH = jnp.array([[True, False, True, True], [False, True, False, False]])
    weights_BMH, both_B = jax.device_get(mixing._pair_weights(jax.random.key(0), there_BH, 500))
    assert both_B.tolist() == [True, False]
    assert (weights_BMH[0, :, 1] == 0).all()
    assert ((weights_BMH[0] > 0).sum(axis=1) == 2).all()
    np.testing.assert_allclose(weights_BMH[0].sum(axis=1), 1, rtol=1e-6)
    shares = weights_BMH[0][weights_BMH[0] > 0]  # Beta(2, 2): mean 1/2, variance 1/20
    assert abs(shares.mean() - 0.5) < 1e-6
    assert abs(shares.var() - 0.05) < 0.01


def test_a_mixed_negative_is_harder_than_what_it_is_made_of():
    # Both negatives have 0.6 with the query; their mean, scaled, points at it.
    q = jnp.array([[1.0, 0.0]])
    d = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
    arrays = dict(labels=jnp.array([0]), where=jnp.ones((1, 3), bool), temperature=1.0)
    mixed = functools.partial(mixed_info_nce, rng=jax.random.key(0), pairs=0, gamma=0)
    loss, metrics = mixed(q, d, **arrays)
    assert float(metrics["mixed_score"]) == pytest.approx(1.0)
    assert float(loss) == pytest.approx(np.log(2 * np.e + 2 * np.exp(0.6)) - 1)
    assert loss > focal_info_nce(q, d, **arrays, gamma=0)[0]


@pytest.mark.parametrize(
    ("listed", "options", "message"),
    [
        (2, {}, "queries list 1 negatives; allowed to mix them: 2 or more"),
        (1, {"pairs": 0}, "queries list 0 negatives; allowed to mix them: 1 or more"),
        (3, {"pairs": 0, "list_mix": False}, "pairs is 0 and list_mix False; allowed: pairs above 0 or"),
    ],
)
def test_what_cannot_be_mixed_is_refused(listed, options, message, example, pick):
    q, d, given = example(listed=listed)
    with pytest.raises(ValueError, match=message):
        mixed_info_nce(q, d, **pick(mixed_info_nce, given), **options)
