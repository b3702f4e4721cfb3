"""Losses of a cross-encoder: functions of the scores of each query's listed documents, its own first.

    loss(scores [B, 1 + H], *, where) -> (loss [], metrics)

`where` bool [B, 1 + H] is False where fewer documents are listed; the first is always there. Letters: B
queries, H listed negatives of each.
"""

import chex
import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


def pointwise(scores: jax.Array, *, where: jax.Array) -> tuple[jax.Array, Metrics]:
    """Binary cross-entropy: the mean over listed documents of -log p of its own, -log(1 - p) of the others,
    with p = sigmoid(s).

    Nogueira and Cho (2019), "Passage Re-ranking with BERT", who sum where this is a mean. Scores become
    probabilities, which a threshold can be set on.

    Args:
      scores: float32 [B, 1 + H].
      where: bool [B, 1 + H].

    Returns:
      the loss, and `accuracy`: the share of queries whose own document scores above all others listed; a tie
      is no hit.

    Raises:
      AssertionError: shapes that differ (chex).

    >>> loss, _ = pointwise(jnp.zeros((1, 3)), where=jnp.ones((1, 3), bool))
    >>> print(f"{loss:.4f}")  # log 2
    0.6931
    """
    chex.assert_rank(scores, 2)
    chex.assert_equal_shape([scores, where])
    own_BH = jnp.arange(scores.shape[1])[None, :] == 0
    lost_BH = jnp.where(where, jax.nn.softplus(jnp.where(own_BH, -scores, scores)), 0.0)
    return lost_BH.sum() / where.sum().astype(jnp.float32), {"accuracy": _accuracy(scores, where)}


def localized_contrastive(scores: jax.Array, *, where: jax.Array) -> tuple[jax.Array, Metrics]:
    """The mean over queries of -log(exp(s_0) / sum_h exp(s_h)), over the query's own document and its listed
    negatives.

    Gao et al. (2021), "Rethink Training of BERT Rerankers in Multi-Stage Retrieval Pipeline": negatives come
    from the ranking that is to be reranked. A score means something beside those of the same query only.

    Arguments, results and errors are those of `pointwise`.

    >>> loss, metrics = localized_contrastive(jnp.array([[1.0, 0.0]]), where=jnp.ones((1, 2), bool))
    >>> print(f"{loss:.4f} {metrics['accuracy']:.0f}")  # log(1 + exp(-1))
    0.3133 1
    """
    chex.assert_rank(scores, 2)
    chex.assert_equal_shape([scores, where])
    scores_BH = jnp.where(where, scores, -jnp.inf)
    loss_B = jax.nn.logsumexp(scores_BH, axis=1) - scores_BH[:, 0]
    return loss_B.mean(), {"accuracy": _accuracy(scores, where)}


def _accuracy(scores_BH: jax.Array, where_BH: jax.Array) -> jax.Array:
    others_B = jnp.where(where_BH, scores_BH, -jnp.inf)[:, 1:].max(axis=1, initial=-jnp.inf)
    return (scores_BH[:, 0] > others_B).astype(jnp.float32).mean()
