"""Which documents of a batch count for a query: its own, and those that are not known to be relevant to it.

Letters: B queries, N documents, P known positives of a query.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Candidates:
    """What says which documents count for a query: its own, and all that are not relevant to it.

    A part of it, made of some queries' positives and some documents' rows, says the same of that block.

    Attributes:
      positives_BP: int32, rows of the documents relevant to a query, -1 beyond.
      document_rows_N: int32, row in the corpus of each document of the batch, -1 for none.
    """

    positives_BP: jax.Array
    document_rows_N: jax.Array

    def own(self, labels_B: jax.Array) -> jax.Array:
        """Returns bool [B, N]: where the column is the query's label; a label outside of 0 to N has none."""
        return labels_B[:, None] == jnp.arange(self.document_rows_N.shape[0])[None, :]

    def relevant(self) -> jax.Array:
        """Returns bool [B, N]: documents that are there and known to be relevant to the query."""
        same_BN = (self.positives_BP[:, :, None] == self.document_rows_N[None, None, :]).any(axis=1)
        return same_BN & (self.document_rows_N >= 0)[None, :]

    def negatives(self) -> jax.Array:
        """Returns bool [B, N]: documents that are there and not relevant to the query."""
        return ~self.relevant() & (self.document_rows_N >= 0)[None, :]

    def where(self, labels_B: jax.Array) -> jax.Array:
        """Returns bool [B, N]: which documents count for a query whose own has the column `labels_B`."""
        return self.own(labels_B) | self.negatives()


def candidates(positives_BP: jax.Array, document_rows_N: jax.Array, labels_B: jax.Array) -> jax.Array:
    """Returns `where` bool [B, N], see `Candidates`; `labels_B` int32 has each query's own column."""
    return Candidates(positives_BP, document_rows_N).where(labels_B)
