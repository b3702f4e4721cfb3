"""InfoNCE with other sums in its denominator: negatives of the same side, or without the positive.

What the arrays are stands in `objectives.arrays`.

Letters: B queries, N documents, D width.
"""

import jax
import jax.numpy as jnp

from dual_encoder.objectives.arrays import Metrics, check_shapes
from dual_encoder.objectives.softmax import cross_entropy, mean


def improved_info_nce(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    where: jax.Array,
    relevant: jax.Array,
    temperature: float | jax.Array,
    weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The mean over queries of -log(exp(s(q, y) / t) / Z), with one Z for the query q and its own document y:
    the sum of exp(. / t) over q with documents, y with other queries, q with other queries, and y with other
    documents.

    After Li et al. (2023), "Towards General Text Embeddings with Multi-stage Contrastive Learning"; here the
    pair itself counts once, in the first sum, and listed negatives count too. Left out are documents relevant
    to q, queries that y is relevant to, and, among queries, those whose own document is relevant to q or that
    have y.

    Args: those of `objectives.softmax.info_nce`, and
      relevant: bool [B, N], the known positives of a query, its own included.

    Returns:
      the loss and `accuracy`, as `info_nce` has it.

    Raises:
      AssertionError: shapes that do not fit (chex).

    Relations: `info_nce` has the first of the four sums alone.
    """
    check_shapes(query_vectors, document_vectors, labels, where)
    scores_BN = query_vectors @ document_vectors.T / temperature
    own_BD = document_vectors[labels]
    shared_BB = relevant[:, labels]  # [b, c]: the own document of c is relevant to b
    other_BB = ~(shared_BB | shared_BB.T)
    own_BN = labels[:, None] == jnp.arange(scores_BN.shape[1])[None, :]
    sums_BM = [
        scores_BN,
        scores_BN[:, labels].T,
        query_vectors @ query_vectors.T / temperature,
        own_BD @ document_vectors.T / temperature,
    ]
    counted_BM = [where, ~shared_BB.T, other_BB, where & ~own_BN]
    loss_B, _ = cross_entropy(jnp.concatenate(sums_BM, axis=1), labels, jnp.concatenate(counted_BM, axis=1))
    _, correct_B = cross_entropy(scores_BN, labels, where)
    return mean(loss_B, weights), {"accuracy": correct_B.mean()}


def decoupled_info_nce(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    where: jax.Array,
    temperature: float | jax.Array,
    weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The mean over queries of -s_y / t + log sum_n exp(s_n / t), n over the negatives alone.

    Yeh et al. (2022), "Decoupled Contrastive Learning", here from queries to documents. Unlike InfoNCE it has
    no lower bound: what is answered already goes on being pulled. A query that no negative counts for has no
    loss.

    Arguments and results are those of `objectives.softmax.info_nce`.
    """
    check_shapes(query_vectors, document_vectors, labels, where)
    scores_BN = query_vectors @ document_vectors.T / temperature
    own_BN = labels[:, None] == jnp.arange(scores_BN.shape[1])[None, :]
    negative_BN = where & ~own_BN
    some_B = negative_BN.any(axis=1)
    masked_BN = jnp.where(negative_BN | ~some_B[:, None], scores_BN, -jnp.inf)
    own_B = jnp.sum(jnp.where(own_BN, scores_BN, 0.0), axis=1)
    loss_B = jnp.where(some_B, jax.nn.logsumexp(masked_BN, axis=1) - own_B, 0.0)
    _, correct_B = cross_entropy(scores_BN, labels, where)
    return mean(loss_B, weights), {"accuracy": correct_B.mean()}
