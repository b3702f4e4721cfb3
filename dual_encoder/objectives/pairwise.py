"""Objectives of pairs: each query and document by itself, and a document beside another.

What the arrays are stands in `objectives.arrays`.

Letters: B queries, N documents, D width, H listed negatives of a query.
"""

import jax
import jax.numpy as jnp

from dual_encoder.objectives import arrays
from dual_encoder.objectives.arrays import Metrics, check_shapes
from dual_encoder.objectives.softmax import mean


def sigmoid(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    where: jax.Array,
    temperature: float | jax.Array,
    bias: float | jax.Array,
    weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The mean over queries of the sum over documents of -log sigmoid(z (s / t + bias)), with z = 1 for a
    query's own and -1 for the others.

    Zhai et al. (2023), "Sigmoid Loss for Language Image Pre-Training": both 1 / t and the bias are learned
    there, from 10 and -10. Here a Task learns the bias, from its field `bias`, and t, from `temperature`,
    where `learn_temperature` is set; its form min_temperature + exp(.) keeps 1 / t below 1 / min_temperature.
    Known positives other than the query's own are left out of the sum, and listed negatives are in it.

    Args: those of `objectives.softmax.info_nce`, and
      bias: what is added to a score.

    Returns:
      the loss, and `accuracy`, as `info_nce` has it.

    Raises:
      AssertionError: shapes that do not fit (chex).

    >>> q, arrays = jnp.eye(2), dict(labels=jnp.arange(2), where=jnp.ones((2, 2), bool), temperature=1.0)
    >>> print(f"{sigmoid(q, q, **arrays, bias=-0.5)[0]:.4f}")  # log(1 + exp(-0.5)), twice
    0.9482
    """
    check_shapes(query_vectors, document_vectors, labels, where)
    scores_BN = query_vectors @ document_vectors.T
    own_BN = _own(labels, scores_BN)
    logits_BN = scores_BN / temperature + bias
    loss_BN = jax.nn.softplus(jnp.where(own_BN, -logits_BN, logits_BN))
    loss_B = jnp.where(where, loss_BN, 0.0).sum(axis=1)
    own_B = jnp.sum(jnp.where(own_BN, scores_BN, 0.0), axis=1)
    hardest_B = _hardest(scores_BN, where & ~own_BN)
    return mean(loss_B, weights), {"accuracy": (own_B > hardest_B).astype(jnp.float32).mean()}


def listed_triplet(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    where: jax.Array,
    weights: jax.Array | None = None,
    margin: float = 0.2,
) -> tuple[jax.Array, Metrics]:
    """The mean over queries of the mean over their listed negatives n of max(0, margin - s_y + s_n).

    Schroff et al. (2015), "FaceNet: A Unified Embedding for Face Recognition and Clustering", with inner
    products in the place of squared distances: of vectors of length 1 they order alike, and a margin of m is
    one of 2 m there. No temperature has a part in it.

    Args: those of `objectives.softmax.info_nce`, and
      margin: positive.

    Returns:
      the loss; `accuracy`, the share of queries whose own document scores above all that it is compared with;
      `active`, the share of the terms that are above 0.

    Raises:
      AssertionError: shapes that do not fit (chex).
      ValueError: queries list no negatives, or the margin is not positive.
    """
    check_shapes(query_vectors, document_vectors, labels, where)
    listed = document_vectors.shape[0] // query_vectors.shape[0]
    if listed < 2:
        raise ValueError("queries list 0 negatives; allowed: config.batch.negatives_per_query of 1 or more")
    scores_BH = arrays.listed(query_vectors @ document_vectors.T, listed)
    there_BH = arrays.listed(where, listed)[:, 1:]
    return _triplet(scores_BH[:, 0], scores_BH[:, 1:], there_BH, margin, weights)


def hardest_triplet(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    where: jax.Array,
    weights: jax.Array | None = None,
    margin: float = 0.2,
) -> tuple[jax.Array, Metrics]:
    """As `listed_triplet`, with one negative a query: the one of the whole batch that scores highest.

    Faghri et al. (2018), "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", from queries to
    documents.

    Arguments, results and errors are those of `listed_triplet`; no negatives need be listed.

    >>> q, d = jnp.array([[1.0, 0.0]]), jnp.array([[0.6, 0.8], [0.5, 0.0], [0.9, 0.0]])
    >>> loss, _ = hardest_triplet(q, d, labels=jnp.array([0]), where=jnp.ones((1, 3), bool))
    >>> print(f"{loss:.1f}")  # 0.2 - 0.6 + 0.9
    0.5
    """
    check_shapes(query_vectors, document_vectors, labels, where)
    scores_BN = query_vectors @ document_vectors.T
    own_BN = _own(labels, scores_BN)
    own_B = jnp.sum(jnp.where(own_BN, scores_BN, 0.0), axis=1)
    negative_BN = where & ~own_BN
    hardest_B = _hardest(scores_BN, negative_BN)
    some_B = negative_BN.any(axis=1)
    hardest_B = jnp.where(some_B, hardest_B, 0.0)
    return _triplet(own_B, hardest_B[:, None], some_B[:, None], margin, weights)


def _triplet(
    own_B: jax.Array,
    other_BH: jax.Array,
    there_BH: jax.Array,
    margin: float,
    weights_B: jax.Array | None,
) -> tuple[jax.Array, Metrics]:
    if not margin > 0:
        raise ValueError(f"margin is {margin}; it must be positive")
    lost_BH = jnp.where(there_BH, jax.nn.relu(margin - own_B[:, None] + other_BH), 0.0)
    loss_B = lost_BH.sum(axis=1) / jnp.maximum(there_BH.sum(axis=1), 1)
    metrics = {
        "accuracy": (own_B > _hardest(other_BH, there_BH)).astype(jnp.float32).mean(),
        "active": (lost_BH > 0).sum() / jnp.maximum(there_BH.sum(), 1),
    }
    return mean(loss_B, weights_B), metrics


def _own(labels_B: jax.Array, scores_BN: jax.Array) -> jax.Array:
    return labels_B[:, None] == jnp.arange(scores_BN.shape[1])[None, :]


def _hardest(scores_BN: jax.Array, negative_BN: jax.Array) -> jax.Array:
    """The highest score of a negative, -inf where there is none."""
    return jnp.where(negative_BN, scores_BN, -jnp.inf).max(axis=1)
