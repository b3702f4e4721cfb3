"""Consistency regularization: two forward passes of one query, which differ by dropout alone, are to agree.

A Task of this room takes it as an option:

    consistency=dict(name="generative_retrieval.consistency.Consistency", weight=0.15)

Letters: B queries, T symbols, D width.
"""

import dataclasses
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Consistency:
    """The regularization of the Neural Corpus Indexer (Wang et al., 2022, "A Neural Corpus Indexer for
    Document Retrieval"), which contrasts a query's two representations with those of the batch's other
    queries.

    The batch holds every query twice, side by side, and the loss of the ids is the mean of both: a step costs
    twice the computation. Where models are compared at equal computation, one with this takes half the steps.

    Attributes:
      weight: what `loss` is multiplied by, the paper's alpha; 0.15 in its training script.
      temperature: the paper's tau.

    Raises:
      ValueError: a field that is not positive.
    """

    weight: float = 0.15
    temperature: float = 1.0

    def __post_init__(self):
        for field in ("weight", "temperature"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be positive")

    def twice(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the batch with each row twice, one after the other, so that a mesh moves no row."""
        return {name: jnp.repeat(x, 2, axis=0) for name, x in batch.items()}

    def loss(self, last: jax.Array, where: jax.Array) -> jax.Array:
        """The mean of -log(exp(sim(z, z') / t) / sum_k exp(sim(z, z_k) / t)), float32 [].

        z and z' are what the last layer of the decoder has for the two passes of a query at one position, in
        either order; k goes over z' and both passes of all other queries, at the same position. sim(u, v) is
        u . v / D: the authors' code scales representations by 1 / sqrt(D), as T5 does before its output
        table. Of the sum it leaves out z itself and keeps z', as contrastive losses do (the paper's index of
        summation says it the other way round); its second softmax over the result is not followed.

        Args:
          last: float [2 B, T, D], of a batch that was made by `twice`.
          where: bool [2 B, T], which positions count; hidden ones are nobody's negatives.

        Raises:
          AssertionError: shapes that do not fit (chex).
        """
        chex.assert_rank([last, where], [3, 2])
        chex.assert_equal_shape_prefix([last, where], 2)
        rows, _, width = last.shape
        z_TRD = jnp.swapaxes(last.astype(jnp.float32), 0, 1)
        similar_TRR = z_TRD @ jnp.swapaxes(z_TRD, 1, 2) / (width * self.temperature)
        where_TR = where.T
        # A hidden position, which is not counted, sees all: the gradient of an empty sum is NaN.
        seen_TRR = (where_TR[:, None, :] | ~where_TR[:, :, None]) & ~jnp.eye(rows, dtype=bool)[None]
        other_R = jnp.arange(rows) ^ 1  # the query's other pass
        own_TR = similar_TRR[:, jnp.arange(rows), other_R]
        lost_TR = jax.nn.logsumexp(similar_TRR, axis=2, where=seen_TRR) - own_TR
        return jnp.where(where_TR, lost_TR, 0.0).sum() / jnp.maximum(where_TR.sum(), 1)
