"""InfoNCE in which a query counts the less the better it is answered already.

What the arrays are stands in `objectives.arrays`.

Letters: B queries, N documents, D width.
"""

import jax
import jax.numpy as jnp

from dual_encoder.objectives.arrays import Metrics, check_shapes
from dual_encoder.objectives.softmax import cross_entropy, mean


def focal_info_nce(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    where: jax.Array,
    temperature: float | jax.Array,
    weights: jax.Array | None = None,
    gamma: float = 0.5,
) -> tuple[jax.Array, Metrics]:
    """The mean over queries of -(1 - p)^gamma log p, with p = exp(s_y / t) / sum_n exp(s_n / t).

    Zhao et al. (2025), "KaLM-Embedding-V2: Superior Training Techniques and Data Inspire A Versatile
    Embedding Model", after the focal loss of Lin et al. (2017), "Focal Loss for Dense Object Detection".
    Gradients go through the weight (1 - p)^gamma too, as in the latter; the former does not say.

    Args: those of `objectives.softmax.info_nce`, and
      gamma: 0 or more.

    Returns:
      the loss; `accuracy`, as `info_nce` has it; `focal_weight`, the mean of (1 - p)^gamma.

    Raises:
      AssertionError: shapes that do not fit (chex).
      ValueError: gamma is negative.

    Relations: with gamma 0 it is `info_nce`. `mixing.mixed_info_nce` weighs in the same way.

    >>> q, d = jnp.eye(2), jnp.zeros((2, 2))
    >>> arrays = dict(labels=jnp.arange(2), where=jnp.ones((2, 2), bool), temperature=1.0)
    >>> print(f"{focal_info_nce(q, d, **arrays, gamma=1.0)[0]:.4f}")  # p is one half: log 2 / 2
    0.3466
    """
    check_shapes(query_vectors, document_vectors, labels, where)
    scores_BN = query_vectors @ document_vectors.T / temperature
    loss_B, correct_B = cross_entropy(scores_BN, labels, where)
    focal_B = focal_weights(loss_B, gamma)
    metrics = {"accuracy": correct_B.mean(), "focal_weight": focal_B.mean()}
    return mean(focal_B * loss_B, weights), metrics


def focal_weights(loss_B: jax.Array, gamma: float) -> jax.Array:
    """Returns (1 - p)^gamma of losses -log p; where 1 - p rounds to 0 it and its gradient are 0.

    Raises:
      ValueError: gamma is negative.
    """
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}; it must be at least 0")
    if gamma == 0:
        return jnp.ones_like(loss_B)
    wrong_B = -jnp.expm1(-loss_B)  # 1 - p, exact where p is close to 1
    some_B = wrong_B > 0
    return jnp.where(some_B, jnp.where(some_B, wrong_B, 1.0) ** gamma, 0.0)
