"""PAIR: a passage is to be closer to its query than to other passages.

What the arrays are stands in `objectives.arrays`.

Letters: B queries, N documents, D width, H listed negatives of a query.
"""

import jax
import jax.numpy as jnp

from dual_encoder.objectives.arrays import Metrics, check_shapes
from dual_encoder.objectives.softmax import cross_entropy, mean


def pair(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    where: jax.Array,
    relevant: jax.Array,
    temperature: float | jax.Array,
    weights: jax.Array | None = None,
    alpha: float = 0.1,
) -> tuple[jax.Array, Metrics]:
    """(1 - alpha) L_Q + alpha L_P, with L_Q InfoNCE from queries to documents, and L_P that from each query's
    own document to the query, against the listed negatives of the batch and its other queries.

    L_P asks for s(p+, q) > s(p+, p-). Ren et al. (2021), "PAIR: Leveraging Passage-Centric Similarity
    Relation for Improving Dense Passage Retrieval". Its formula names the negatives p- of the query; the code
    released with it takes those of the whole batch, and the batch's other queries too, and so do we. Where
    queries list no negatives, only other queries are left. The paper trains with it first and then goes on
    with L_Q alone (`info_nce`, from `init_from.run`); it learns from labels that a cross-encoder denoised,
    and ties the towers.

    Args: those of `objectives.softmax.info_nce`, and
      relevant: bool [B, N], the known positives of a query; none of them counts against it, nor a query that
        the document is relevant to.
      alpha: 0 to 1.

    Returns:
      the loss; `accuracy`, as `info_nce` has it; `passage_accuracy`, the share of documents that are closer
      to their query than to all they are compared with.

    Raises:
      AssertionError: shapes that do not fit (chex).
      ValueError: alpha is not within 0 and 1.

    Relations: with alpha 0 it is `info_nce`.
    """
    check_shapes(query_vectors, document_vectors, labels, where)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; allowed: 0 to 1")
    scores_BN = query_vectors @ document_vectors.T / temperature
    loss_B, correct_B = cross_entropy(scores_BN, labels, where)
    batch = labels.shape[0]
    own_BD = document_vectors[labels]
    # Column b of the first B is query b; a document that is relevant to a query has it not as a negative.
    to_queries_BB = ~relevant[:, labels].T | jnp.eye(batch, dtype=bool)
    listed_N = jnp.ones(document_vectors.shape[0], bool).at[labels].set(False)
    to_documents_BN = where & ~relevant & listed_N[None, :]
    against_BM = own_BD @ jnp.concatenate([query_vectors, document_vectors]).T / temperature
    passage_B, closer_B = cross_entropy(
        against_BM, jnp.arange(batch), jnp.concatenate([to_queries_BB, to_documents_BN], axis=1)
    )
    metrics = {"accuracy": correct_B.mean(), "passage_accuracy": closer_B.mean()}
    return (1 - alpha) * mean(loss_B, weights) + alpha * mean(passage_B, weights), metrics
