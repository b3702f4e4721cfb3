"""Imitation of given vectors beside a slow transcription of its formula."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_encoder.objectives.imitation import imitated

B, N, D, T = 3, 5, 4, 0.5


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    where = rng.random((B, N)) < 0.7
    labels = np.array([0, 2, 4])
    where[np.arange(B), labels] = True
    return draw(B, D), draw(N, D), {
        "labels": labels,
        "where": where,
        "target": draw(B, D),
        "weights": np.array([0.5, 1.0, 1.5], np.float32),
    }  # fmt: skip


def slow(q, d, labels, where, target, weights, mse_weight, cosine_weight, contrastive_weight):
    total = 0.0
    for b in range(B):
        squares = sum((q[b, i] - target[b, i]) ** 2 for i in range(D)) / D
        dot = sum(q[b, i] * target[b, i] for i in range(D))
        lengths = math.sqrt(sum(x * x for x in q[b])) * math.sqrt(sum(x * x for x in target[b]))
        scores = [sum(q[b, i] * d[n, i] for i in range(D)) / T for n in range(N)]
        lost = math.log(sum(math.exp(scores[n]) for n in range(N) if where[b, n])) - scores[labels[b]]
        each = mse_weight * squares + cosine_weight * (1 - dot / lengths) + contrastive_weight * lost
        total += weights[b] * each
    return total / B


@pytest.mark.parametrize("given", [(1.0, 0.0, 0.0), (0.3, 2.0, 0.0), (0.5, 0.1, 0.7), (0.0, 1.0, 0.0)])
def test_it_is_its_formula(arrays, given):
    q, d, others = arrays
    names = dict(zip(("mse_weight", "cosine_weight", "contrastive_weight"), given, strict=True))
    loss, metrics = imitated(jnp.asarray(q), jnp.asarray(d), temperature=T, **others, **names)
    wide = lambda x: np.asarray(x, np.float64)
    expected = slow(wide(q), wide(d), **others, **names)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert ("accuracy" in metrics) == (given[2] > 0)


def test_neither_the_target_nor_unread_documents_get_a_gradient(arrays):
    q, d, others = arrays
    target = others.pop("target")
    loss = functools.partial(imitated, temperature=T, cosine_weight=1.0, **others)
    of = jax.grad(lambda q, d, target: loss(q, d, target=target)[0], argnums=(0, 1, 2))
    query, document, of_target = of(jnp.asarray(q), jnp.asarray(d), jnp.asarray(target))
    assert np.abs(query).max() > 0
    assert not np.any(document)
    assert not np.any(of_target)
    zero = of(jnp.zeros((B, D)), jnp.asarray(d), jnp.asarray(target))[0]
    assert np.isfinite(zero).all()


@pytest.mark.parametrize("given", [(0.0, 0.0), (-1.0, 2.0)])
def test_weights_are_checked(arrays, given):
    q, d, others = arrays
    with pytest.raises(ValueError, match="allowed: 0 or more, one above 0"):
        imitated(q, d, temperature=T, mse_weight=given[0], cosine_weight=given[1], **others)
