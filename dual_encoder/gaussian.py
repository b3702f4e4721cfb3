"""A text as a normal distribution, and the negative Kullback-Leibler divergence as one inner product.

Zamani and Bendersky (2023), "Multivariate Representation Learning for Information Retrieval". A query Q and a
document T are normal with the means m and the variances s of k independent numbers, and a document's score is

    -KL(Q || T) = -1/2 sum_i ( log t_i / s_i + (s_i + (m_i - n_i)^2) / t_i - 1 )

for Q with m, s and T with n, t. What depends on the query alone ranks nothing. The rest is the inner product
of

    [1, s + m^2, m]  and  [-1/2 sum_i (log t_i + n_i^2 / t_i), -1/(2 t), n / t]

of 1 + 2k numbers, so any index for inner products is exact for it. For a loss over documents of a query it is
the divergence too; one over queries of a document would need what is left out.

The mean is made of the first token, such as [CLS]; the variance of the last one, such as [SEP], for which the
paper adds a token of its own: softplus(beta x) / beta of a linear layer, and at least `least`. The paper
distills a cross-encoder listwise; here the objective is the Task's.

Letters: B batch, D width of the encoder, K numbers of a distribution, W = 1 + 2K.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from backbones.encoded import Encoded
from dual_encoder import poolers
from dual_encoder.towers import DualEncoder, Tower


class Moments(nn.Module):
    """Mean and variance, float32 [B, K] each, of an encoder's output.

    Attributes:
      width: K.
      beta: sharpness of the softplus.
      least: what a variance stays above.
    """

    width: int
    beta: float = 2.5
    least: float = 1e-2

    @nn.compact
    def __call__(self, encoded: Encoded) -> tuple[jax.Array, jax.Array]:
        mean_BK = nn.Dense(self.width, name="mean")(poolers.cls(encoded))
        raw_BK = nn.Dense(self.width, name="variance")(poolers.last(encoded))
        return mean_BK, self.least + jax.nn.softplus(self.beta * raw_BK) / self.beta


class Query(nn.Module):
    """The pooler of queries, [B, W]."""

    moments: Moments

    def __call__(self, encoded: Encoded) -> jax.Array:
        return of_query(*self.moments(encoded))


class Document(nn.Module):
    """The pooler of documents, [B, W]."""

    moments: Moments

    def __call__(self, encoded: Encoded) -> jax.Array:
        return of_document(*self.moments(encoded))


def of_query(mean_BK: jax.Array, variance_BK: jax.Array) -> jax.Array:
    """Returns the vectors of queries, [B, W]."""
    return jnp.concatenate(
        [jnp.ones_like(mean_BK[:, :1]), variance_BK + jnp.square(mean_BK), mean_BK], axis=1
    )


def of_document(mean_BK: jax.Array, variance_BK: jax.Array) -> jax.Array:
    """Returns the vectors of documents, [B, W]."""
    prior_BK = jnp.log(variance_BK) + jnp.square(mean_BK) / variance_BK
    alone_B1 = -0.5 * prior_BK.sum(axis=1, keepdims=True)
    return jnp.concatenate([alone_B1, -0.5 / variance_BK, mean_BK / variance_BK], axis=1)


def tied(encoder: nn.Module, *, width: int, beta: float = 2.5, least: float = 1e-2) -> DualEncoder:
    """Two towers with one encoder and the same means and variances, and the two sides of the inner
    product."""
    moments = Moments(width, beta, least)
    query, document = (Tower(encoder, side(moments), normalize=False) for side in (Query, Document))
    return DualEncoder(query=query, document=document)
