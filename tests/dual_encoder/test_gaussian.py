"""The inner product ranks as the divergence does, exactly."""

import hypothesis
import jax
import numpy as np
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from backbones.attention import SelfAttention
from backbones.blocks import PreNorm
from backbones.embedding import TokenEmbedding
from backbones.encoded import Encoded
from backbones.encoder import TransformerEncoder
from dual_encoder import gaussian
from moe.feed_forward import Dense
from training import paths

K = 3
MEANS = arrays.arrays(np.float32, (5, K), elements=strategies.floats(-3, 3, width=32))
VARIANCES = arrays.arrays(np.float32, (5, K), elements=strategies.floats(0.125, 4, width=32))


def divergence(m, s, n, t):
    """KL of two normal distributions with diagonal covariances, from their matrices."""
    s, t = np.diag(s.astype(np.float64)), np.diag(t.astype(np.float64))
    apart = (m - n).astype(np.float64)
    inverse = np.linalg.inv(t)
    logs = np.log(np.linalg.det(t) / np.linalg.det(s))
    return 0.5 * (logs - K + np.trace(inverse @ s) + apart @ inverse @ apart)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(MEANS, VARIANCES, MEANS, VARIANCES)
def test_the_inner_product_is_the_divergence_but_for_the_query(m, s, n, t):
    queries, documents = np.asarray(gaussian.of_query(m, s)), np.asarray(gaussian.of_document(n, t))
    assert queries.shape == documents.shape == (5, 1 + 2 * K)
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    exact = np.array([[-divergence(m[q], s[q], n[d], t[d]) for d in range(5)] for q in range(5)])
    apart = (scores - exact) - (scores - exact)[:, :1]  # a constant of each query, so ranks are the same
    assert np.abs(apart).max() <= 1e-5 * max(np.abs(scores).max(), 1)


def test_rankings_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    m, n = rng.normal(size=(20, K)), rng.normal(size=(200, K))
    s, t = rng.uniform(0.2, 2, (20, K)), rng.uniform(0.2, 2, (200, K))
    scores = np.asarray(gaussian.of_query(m, s)) @ np.asarray(gaussian.of_document(n, t)).T
    exact = np.array([[-divergence(m[q], s[q], n[d], t[d]) for d in range(200)] for q in range(20)])
    np.testing.assert_array_equal(np.argsort(-scores, axis=1)[:, :50], np.argsort(-exact, axis=1)[:, :50])


def test_both_sides_have_the_same_moments_and_variances_are_positive():
    encoder = TransformerEncoder(TokenEmbedding(9, 8), PreNorm(SelfAttention(heads=2), Dense(8)), 1)
    model = gaussian.tied(encoder, width=K, least=0.1)
    texts = {"tokens": np.ones((1, 2), int), "mask": np.ones((1, 2), int)}
    shapes = jax.eval_shape(model.init, jax.random.key(0), texts, texts)["params"]
    assert sum(path.endswith("mean/kernel") for path in paths.paths(shapes)) == 1
    assert sum("table" in path for path in paths.paths(shapes)) == 1
    encoded = Encoded(np.full((1, 2, 8), -100, np.float32), np.ones((1, 2), bool))
    moments = gaussian.Moments(K, least=0.1)
    params = jax.tree.map(np.ones_like, jax.jit(moments.init)(jax.random.key(0), encoded))
    mean, variance = moments.apply(params, encoded)
    np.testing.assert_allclose(mean, -799)
    np.testing.assert_allclose(variance, 0.1, rtol=1e-6)
