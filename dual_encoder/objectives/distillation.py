"""Distillation from a teacher's scores of the documents that a query lists, beside InfoNCE.

    objective=dict(
        name="dual_encoder.objectives.distillation.distilled",
        loss=dict(name="training.ranking.kl", temperature=1.0),
        contrastive_weight=0.1,
    )

The field `batch.teacher` of a config says whose scores. What the arrays are stands in `objectives.arrays`.

Letters: B queries, N documents, D width, H listed negatives of a query.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dual_encoder.objectives import arrays
from dual_encoder.objectives.arrays import Metrics, check_shapes
from dual_encoder.objectives.softmax import cross_entropy, mean
from training import ranking


def distilled(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    where: jax.Array,
    temperature: float | jax.Array,
    teacher: jax.Array,
    weights: jax.Array | None = None,
    loss: Callable[..., jax.Array] = ranking.kl,
    weight: float = 1.0,
    contrastive_weight: float = 0.0,
) -> tuple[jax.Array, Metrics]:
    """`weight` times a loss of `training.ranking` over each query's own document and listed negatives, and
    `contrastive_weight` times InfoNCE over all documents of the batch.

    The student's scores are q . d / t, so that a learned temperature finds the teacher's scale. With `kl` it
    is the listwise distillation of Yang et al. (2024), "Translate-Distill: Learning Cross-Language Dense
    Retrieval by Translation and Distillation", and with InfoNCE beside it that of Tamber et al. (2025),
    "Teaching Dense Retrieval Models to Specialize with Listwise Distillation and LLM Data Augmentation"; with
    `margin_mse`, a temperature of 1 and vectors of any length that of Hofstaetter et al. (2020), "Improving
    Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation"; with `list_net` that of
    Cao et al. (2007).

    Args:
      query_vectors, document_vectors, labels, where, temperature, weights: those of
        `objectives.softmax.info_nce`.
      teacher: float32 [B, 1 + H], NaN where there is no score.
      loss: `(student [B, 1 + H], teacher [B, 1 + H], *, where, weights) -> []`.
      weight: of it.
      contrastive_weight: of InfoNCE; 0 for distillation alone.

    Returns:
      the loss; `distillation`, that of the teacher; `accuracy`, as `info_nce` has it.

    Raises:
      AssertionError: shapes that do not fit (chex).
      ValueError: a weight below 0, or both 0.
    """
    check_shapes(query_vectors, document_vectors, labels, where)
    if min(weight, contrastive_weight) < 0 or weight == contrastive_weight == 0:
        raise ValueError(
            f"weight is {weight} and contrastive_weight {contrastive_weight}; allowed: 0 or more, one above 0"
        )
    scores_BN = query_vectors @ document_vectors.T / temperature
    here = lambda x_BN: arrays.listed(x_BN, teacher.shape[1])
    apart = loss(here(scores_BN), teacher, where=here(where), weights=weights)
    loss_B, correct_B = cross_entropy(scores_BN, labels, where)
    total = weight * apart
    if contrastive_weight:
        total = total + contrastive_weight * mean(loss_B, weights)
    return jnp.asarray(total), {"distillation": apart, "accuracy": correct_B.mean()}
