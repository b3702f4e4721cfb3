"""InfoNCE with hard negatives that are mixed from those that a query lists.

What the arrays are stands in `objectives.arrays`.

Letters: B queries, N documents, D width, H listed negatives of a query, M mixed ones.
"""

import jax
import jax.numpy as jnp

from dual_encoder.objectives import arrays
from dual_encoder.objectives.arrays import Metrics, check_shapes
from dual_encoder.objectives.focal import focal_weights
from dual_encoder.objectives.softmax import cross_entropy, mean
from dual_encoder.towers import l2_normalize


def mixed_info_nce(
    query_vectors: jax.Array,
    document_vectors: jax.Array,
    *,
    labels: jax.Array,
    where: jax.Array,
    temperature: float | jax.Array,
    rng: jax.Array,
    weights: jax.Array | None = None,
    pairs: int = 1,
    list_mix: bool = True,
    gamma: float = 0.5,
) -> tuple[jax.Array, Metrics]:
    """`objectives.focal.focal_info_nce`, with the scores of mixed negatives in each query's denominator.

    A query's listed negatives d_1 ... d_H are mixed, anew at each step, in pairs, l d_j + (1 - l) d_k with
    two of them at random and l from Beta(2, 2), and all together, sum_h l_h d_h with l = softmax(q . d_h /
    t); the mixtures are scaled to length 1.

    Zhao et al. (2025), "KaLM-Embedding-V2: Superior Training Techniques and Data Inspire A Versatile
    Embedding Model". That the weights of the list are a softmax at the loss's temperature, that they are
    constants for the gradient, how many mixtures there are, and that they are negatives of their own query
    alone, is our choice: of the paper we know the two sums, Beta(2, 2), "similarity-weighted" and the
    scaling.

    Args: those of `objectives.focal.focal_info_nce`, and
      rng: a random key.
      pairs: how many mixtures of two; needs two listed negatives.
      list_mix: whether there is one of all.

    Returns:
      those of `focal_info_nce`, and `mixed_score`, the mean of q . d over mixed negatives.

    Raises:
      AssertionError: shapes that do not fit (chex).
      ValueError: nothing is to be mixed, or too few negatives are listed.

    Relations: vectors that have length 1 already are what it is for.
    """
    check_shapes(query_vectors, document_vectors, labels, where)
    listed = document_vectors.shape[0] // query_vectors.shape[0]
    least = 2 if pairs else 1
    if pairs < 0 or not (pairs or list_mix):
        raise ValueError(f"pairs is {pairs} and list_mix {list_mix}; allowed: pairs above 0 or list_mix")
    if listed - 1 < least:
        raise ValueError(f"queries list {listed - 1} negatives; allowed to mix them: {least} or more")
    scores_BN = query_vectors @ document_vectors.T
    there_BH = arrays.listed(where, listed)[:, 1:]
    negative_BHD = document_vectors.reshape(-1, listed, document_vectors.shape[1])[:, 1:]
    mixed_BMD, there_BM = [], []
    if pairs:
        mixes_BMH, both_B = _pair_weights(rng, there_BH, pairs)
        mixed_BMD.append(jnp.einsum("bmh,bhd->bmd", mixes_BMH, negative_BHD))
        there_BM.append(jnp.broadcast_to(both_B[:, None], mixes_BMH.shape[:2]))
    if list_mix:
        some_B = there_BH.any(axis=1)
        scores_BH = jax.lax.stop_gradient(arrays.listed(scores_BN, listed)[:, 1:] / temperature)
        mix_BH = jax.nn.softmax(scores_BH, axis=1, where=there_BH | ~some_B[:, None])
        mixed_BMD.append(jnp.einsum("bh,bhd->bd", mix_BH, negative_BHD)[:, None])
        there_BM.append(some_B[:, None])
    mixed_BMD, there_BM = jnp.concatenate(mixed_BMD, axis=1), jnp.concatenate(there_BM, axis=1)
    mixed_BM = jnp.einsum("bd,bmd->bm", query_vectors, l2_normalize(mixed_BMD))
    all_BN = jnp.concatenate([scores_BN, mixed_BM], axis=1) / temperature
    loss_B, correct_B = cross_entropy(all_BN, labels, jnp.concatenate([where, there_BM], axis=1))
    focal_B = focal_weights(loss_B, gamma)
    metrics = {
        "accuracy": correct_B.mean(),
        "focal_weight": focal_B.mean(),
        "mixed_score": jnp.where(there_BM, mixed_BM, 0.0).sum() / jnp.maximum(there_BM.sum(), 1),
    }
    return mean(focal_B * loss_B, weights), metrics


def _pair_weights(rng: jax.Array, there_BH: jax.Array, pairs: int) -> tuple[jax.Array, jax.Array]:
    """Returns weights [B, M, H] of two negatives each, and whether a query has two."""
    batch, negatives = there_BH.shape
    order, share = jax.random.split(rng)
    drawn_BMH = jax.random.uniform(order, (batch, pairs, negatives))
    place_BMH = jnp.argsort(jnp.argsort(jnp.where(there_BH[:, None], drawn_BMH, 2.0), axis=2), axis=2)
    share_BM1 = jax.random.beta(share, 2.0, 2.0, (batch, pairs, 1))
    first_BMH, second_BMH = place_BMH == 0, place_BMH == 1
    return jnp.where(first_BMH, share_BM1, 0.0) + jnp.where(second_BMH, 1 - share_BM1, 0.0), (
        there_BH.sum(axis=1) > 1
    )
