"""Vectors of queries that are to be like given ones, beside InfoNCE.

    objective=dict(name="dual_encoder.objectives.imitation.imitated", mse_weight=1.0, cosine_weight=1.0)

The field `batch.targets` of a config says whose vectors, see `dual_encoder.targets`. What the arrays are
stands in `objectives.arrays`.

Letters: B queries, N documents, D width.
"""

import chex
import jax
import jax.numpy as jnp

from dual_encoder.objectives.arrays import Metrics, check_shapes
from dual_encoder.objectives.softmax import cross_entropy, mean

_LEAST = 1e-12  # a length, so that the zero vector has a cosine and a gradient


def imitated(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    where: jax.Array,
    temperature: float | jax.Array,
    target: jax.Array,
    weights: jax.Array | None = None,
    mse_weight: float = 1.0,
    cosine_weight: float = 0.0,
    contrastive_weight: float = 0.0,
) -> tuple[jax.Array, Metrics]:
    """`mse_weight` times the mean of (q - target)^2, `cosine_weight` times that of 1 - cos(q, target), and
    `contrastive_weight` times InfoNCE.

    With the first two, for a small query tower beside a frozen document tower, it is the second stage of
    Huang et al. (2024), "ScalingNote: Scaling up Retrievers with Large Language Models for Real-World Dense
    Retrieval"; with the first and the last, and targets that are vectors of queries that were expanded, that
    of Pimpalkhute et al. (2024), "SoftQE: Learned Representations of Queries Expanded by LLMs". The weights
    are a config's.

    Args:
      query_vectors, document_vectors, labels, where, temperature, weights: those of
        `objectives.softmax.info_nce`. Without InfoNCE the documents are not looked at, and a compiled step
        does not encode them.
      target: float32 [B, D].
      mse_weight: of the squared difference, whose mean is over features too.
      cosine_weight: of the cosine.
      contrastive_weight: of InfoNCE.

    Returns:
      the loss; `mse` and `cosine`, the means; with InfoNCE `accuracy`, as `info_nce` has it.

    Raises:
      AssertionError: shapes that do not fit (chex).
      ValueError: a weight below 0, or all of them 0.

    >>> q, target = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])
    >>> loss, _ = imitated(q, q, labels=jnp.zeros(1, int), where=jnp.ones((1, 1), bool), temperature=1.0,
    ...     target=target, cosine_weight=1.0)
    >>> print(f"{loss:.1f}")  # (1 + 4) / 2 + 1
    3.5
    """
    check_shapes(query_vectors, document_vectors, labels, where)
    chex.assert_equal_shape([query_vectors, target])
    given = (mse_weight, cosine_weight, contrastive_weight)
    if min(given) < 0 or not any(given):
        raise ValueError(
            f"mse_weight, cosine_weight and contrastive_weight are {given}; allowed: 0 or more, one above 0"
        )
    target = jax.lax.stop_gradient(target)
    mse_B = jnp.square(query_vectors - target).mean(axis=1)
    length = lambda x_BD: jnp.sqrt(jnp.maximum(jnp.square(x_BD).sum(axis=1), _LEAST))
    cosine_B = (query_vectors * target).sum(axis=1) / (length(query_vectors) * length(target))
    loss = mse_weight * mean(mse_B, weights) + cosine_weight * mean(1 - cosine_B, weights)
    metrics = {"mse": mse_B.mean(), "cosine": cosine_B.mean()}
    if contrastive_weight:
        lost_B, correct_B = cross_entropy(query_vectors @ document_vectors.T / temperature, labels, where)
        loss = loss + contrastive_weight * mean(lost_B, weights)
        metrics["accuracy"] = correct_B.mean()
    return loss, metrics
