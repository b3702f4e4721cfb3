"""The cross-encoder: query and document as one row of tokens, and one score.

Letters: B rows, L length, D width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from backbones.encoded import Encoded


class CrossEncoder(nn.Module):
    """Encoder, pooler and a linear score: every token of the document sees every token of the query.

    Nogueira and Cho (2019), "Passage Re-ranking with BERT", with the pooler that takes [CLS]. The score is a
    log odds: its sigmoid is the probability that the document is relevant, where the loss was of
    probabilities (`losses.pointwise`).

    Attributes:
      encoder: `(batch, *, train) -> Encoded`. Query and document differ in `segments`, see
        `pairs.PairTable`: an encoder that is to tell them apart has a table of them, such as
        `backbones.positions.LearnedSegments`.
      pooler: `Encoded -> [B, D]`, such as one of `dual_encoder.poolers`.
      dropout: rate of dropout on what is pooled.
    """

    encoder: nn.Module
    pooler: Callable[[Encoded], jax.Array]
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, batch: Mapping[str, jax.Array], *, train: bool = False
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns scores float32 [B] for `tokens`, `mask` and `segments` [B, L], and the sums of the
        encoder's sparse layers, [Y, B, ...] each; `{}` where it is dense."""
        encoded = self.encoder(batch, train=train)
        x_BD = self.pooler(encoded).astype(jnp.float32)
        x_BD = nn.Dropout(self.dropout)(x_BD, deterministic=not train)
        return nn.Dense(1, name="score")(x_BD)[:, 0], encoded.aux
