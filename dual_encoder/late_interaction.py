"""Late interaction: a vector of every token, and a query's tokens each with the document's token they are
nearest to.

Letters: B queries, L tokens of a query, N documents, M tokens of a document, D width of a vector.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_encoder.towers import DOCUMENT, QUERY, l2_normalize


class LateInteraction(nn.Module):
    """One encoder for queries and documents, and a projection of each token to a vector of length 1.

    Khattab and Zaharia (2020), "ColBERT: Efficient and Effective Passage Search via Contextualized Late
    Interaction over BERT", without what it does to the text: no marks of the two sides, no masks that
    lengthen a query, no punctuation left out.

    Attributes:
      encoder: `(batch, *, train) -> Encoded`, dense.
      width: D.
    """

    encoder: nn.Module
    width: int = 128

    def setup(self):
        self.project = nn.Dense(self.width, use_bias=False)

    def __call__(self, queries: Mapping, documents: Mapping, *, train: bool = False) -> jax.Array:
        """Returns the scores float32 [B, N] of all queries with all documents, each `tokens`, `mask` and
        `segments` [B or N, length]."""
        return max_sim(
            *self.tokens(queries, QUERY, train=train), *self.tokens(documents, DOCUMENT, train=train)
        )

    def tokens(self, batch: Mapping, side: int, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Returns vectors float32 [B, L, D] and their mask bool [B, L].

        Raises:
          ValueError: in training, the encoder's feed-forward layers return sums, which would be lost here.
        """
        encoded = self.encoder(
            {**batch, "domains": jnp.full(len(batch["tokens"]), side, jnp.int32)}, train=train
        )
        if train and encoded.aux:
            raise ValueError(
                f"the encoder returns sums ({', '.join(encoded.aux)}); allowed here: a dense one"
            )
        return l2_normalize(self.project(encoded.last).astype(jnp.float32)), encoded.mask


def max_sim(
    query_BLD: jax.Array, query_BL: jax.Array, document_NMD: jax.Array, document_NM: jax.Array
) -> jax.Array:
    """Returns float32 [B, N]: the sum over a query's tokens of the largest product with a document's token.

    Masked tokens count nothing, and neither does a document without tokens. One query after the other, so
    that products are [N, L, M] at a time; the backward pass computes them again.
    """

    @jax.checkpoint
    def of_query(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        query_LD, query_L = given
        products_NLM = jnp.einsum("ld,nmd->nlm", query_LD, document_NMD)
        best_NL = jnp.where(document_NM[:, None, :], products_NLM, -jnp.inf).max(axis=2)
        counts_NL = query_L[None, :] & document_NM.any(axis=1)[:, None]
        return jnp.where(counts_NL, best_NL, 0.0).sum(axis=1)

    return jax.lax.map(of_query, (query_BLD, query_BL))
