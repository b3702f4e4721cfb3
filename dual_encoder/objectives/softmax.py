"""InfoNCE: the softmax over a query's candidates. What the arrays are stands in `objectives.arrays`.

Letters: B queries, N documents, D width.
"""

import jax
import jax.numpy as jnp

from dual_encoder.objectives.arrays import Metrics, check_shapes


def info_nce(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    where: jax.Array,
    temperature: float | jax.Array,
    weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The mean over queries of -log(exp(s_y / t) / sum_n exp(s_n / t)), with s = q . d.

    van den Oord et al. (2018), "Representation Learning with Contrastive Predictive Coding"; with
    in-batch and listed negatives, Karpukhin et al. (2020), "Dense Passage Retrieval for Open-Domain
    Question Answering".

    Args:
      query_vectors: float32 [B, D].
      document_vectors: float32 [N, D]; in-batch documents and listed negatives alike.
      labels: int32 [B], the column of each query's relevant document.
      where: bool [B, N], which documents count for a query; its own always does.
      temperature: t, positive.
      weights: float32 [B], how much each query counts in the mean; None for all alike.

    Returns:
      the loss, and `accuracy`: the share of queries whose own document scores above all others; a tie
      is no hit, so that vectors that are all the same do not look perfect.

    Raises:
      AssertionError: shapes that do not fit (chex).

    Relations: `symmetric_info_nce` adds the direction from documents to queries.

    >>> q = jnp.eye(2)
    >>> loss, metrics = info_nce(q, q, labels=jnp.arange(2), where=jnp.ones((2, 2), bool), temperature=1.0)
    >>> print(f"{loss:.4f} {metrics['accuracy']:.1f}")  # log(1 + exp(-1))
    0.3133 1.0
    """
    check_shapes(query_vectors, document_vectors, labels, where)
    scores_BN = query_vectors @ document_vectors.T / temperature
    loss_B, correct_B = cross_entropy(scores_BN, labels, where)
    return mean(loss_B, weights), {"accuracy": correct_B.mean()}


def symmetric_info_nce(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    where: jax.Array,
    temperature: float | jax.Array,
    weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The mean of `info_nce` from queries to documents and from their own documents to queries.

    Radford et al. (2021), "Learning Transferable Visual Models From Natural Language Supervision".
    Listed negatives take part in the first direction only: they have no query of their own. A query
    is masked as a negative of every document that is relevant to it.

    Arguments and results are those of `info_nce`.
    """
    check_shapes(query_vectors, document_vectors, labels, where)
    scores_BN = query_vectors @ document_vectors.T / temperature
    forward_B, correct_B = cross_entropy(scores_BN, labels, where)
    backward_B, _ = cross_entropy(scores_BN[:, labels].T, jnp.arange(labels.shape[0]), where[:, labels].T)
    return (mean(forward_B, weights) + mean(backward_B, weights)) / 2, {"accuracy": correct_B.mean()}


def mean(loss_B: jax.Array, weights_B: jax.Array | None) -> jax.Array:
    """The mean over queries, each as much as it counts."""
    return (loss_B if weights_B is None else loss_B * weights_B).mean()


def cross_entropy(
    scores_BN: jax.Array, labels_B: jax.Array, where_BN: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns each query's loss float32 [B], and whether its own document is above all others, 0 or 1."""
    scores_BN = jnp.where(where_BN, scores_BN, -jnp.inf)
    own_B = jnp.take_along_axis(scores_BN, labels_B[:, None], axis=1)[:, 0]
    loss_B = jax.nn.logsumexp(scores_BN, axis=1) - own_B
    others_BN = jnp.where(labels_B[:, None] == jnp.arange(scores_BN.shape[1])[None, :], -jnp.inf, scores_BN)
    return loss_B, (own_B > others_BN.max(axis=1)).astype(jnp.float32)
