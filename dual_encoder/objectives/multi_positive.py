"""One query, several positives of equal weight.

What the arrays are stands in `objectives.arrays`. A query's positives meet in a batch where its examples
stand together (`batch.neighbors`), as they come one after another in the list of training pairs.

Letters: B queries, N documents, D width, K positives of a query.
"""

import jax
import jax.numpy as jnp

from dual_encoder.objectives.arrays import Metrics, check_shapes
from dual_encoder.objectives.softmax import mean


def one_to_k(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    where: jax.Array,
    relevant: jax.Array,
    temperature: float | jax.Array,
    weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The mean of two directions: over queries, of the mean over their K positives k of
    -log(exp(s_k / t) / sum_n exp(s_n / t)) with n over positives and negatives, and the same from each
    positive to its query, with all queries that it is no positive of in the denominator.

    Nie et al. (2024), "Improving the Consistency in Cross-Lingual Cross-Modal Retrieval with 1-to-K
    Contrastive Learning", as in the code released with it: a query's positives stand in each other's
    denominators. There an image has K texts and a text one image. Where a document is a positive of several
    queries, none of them is another's negative; that code divides its second direction by K once more, which
    we do not.

    Args: those of `objectives.softmax.info_nce`, and
      relevant: bool [B, N], a query's positives in the batch, its own included.

    Returns:
      the loss; `accuracy`, the share of queries whose best document is one of their positives; `positives`,
      the mean of K.

    Raises:
      AssertionError: shapes that do not fit (chex).

    Relations: with one positive a query and no listed negatives it is `symmetric_info_nce`.

    >>> q, d = jnp.ones((1, 1)), jnp.zeros((3, 1))
    >>> arrays = dict(labels=jnp.zeros(1, int), temperature=1.0, relevant=jnp.array([[True, True, False]]))
    >>> loss, _ = one_to_k(q, d, where=jnp.ones((1, 3), bool), **arrays)
    >>> print(f"{loss:.4f}")  # (log 3 + 0) / 2: no document has another query
    0.5493
    """
    check_shapes(query_vectors, document_vectors, labels, where)
    scores_BN = query_vectors @ document_vectors.T / temperature
    share_BN = relevant / relevant.sum(axis=1, keepdims=True)
    counts_BN = where | relevant
    to_documents_B = jax.nn.logsumexp(jnp.where(counts_BN, scores_BN, -jnp.inf), axis=1)
    own_B = jnp.sum(share_BN * scores_BN, axis=1)
    others_1N = _log_sum(jnp.where(relevant, -jnp.inf, scores_BN))
    backward_BN = jax.nn.softplus(others_1N - scores_BN)  # -log(exp(s) / (exp(s) + others))
    backward_B = jnp.sum(jnp.where(relevant, share_BN * backward_BN, 0.0), axis=1)
    best_BN = jnp.where(relevant, scores_BN, -jnp.inf).max(axis=1)
    worst_BN = jnp.where(counts_BN & ~relevant, scores_BN, -jnp.inf).max(axis=1)
    metrics = {
        "accuracy": (best_BN > worst_BN).astype(jnp.float32).mean(),
        "positives": relevant.sum(axis=1).astype(jnp.float32).mean(),
    }
    return (mean(to_documents_B - own_B, weights) + mean(backward_B, weights)) / 2, metrics


def _log_sum(scores_BN: jax.Array) -> jax.Array:
    """The log of the sum of exponentials over queries [1, N]; very low where there are none."""
    some_1N = jnp.isfinite(scores_BN).any(axis=0, keepdims=True)
    safe_BN = jnp.where(some_1N, scores_BN, 0.0)
    return jnp.where(some_1N, jax.nn.logsumexp(safe_BN, axis=0, keepdims=True), -1e30)
