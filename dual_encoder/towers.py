"""Towers and the dual encoder: a text to a vector, and queries and documents to one space.

Letters: B batch, L length, D width of a vector.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from backbones.encoded import Encoded
from training.activations import named

QUERY, DOCUMENT = 0, 1  # domains


class Tower(nn.Module):
    """Encoder, pooler and head.

    Attributes:
      encoder: `(batch, *, train) -> Encoded`.
      pooler: `Encoded -> [B, D']`, one of `dual_encoder.poolers`.
      head: a module `[B, D'] -> [B, D]`, such as `flax.linen.Dense`; None for none.
      normalize: whether vectors are scaled to length 1, so that their product is the cosine.
      unpooled: how many of the first tokens of a query, and of a document, the pooler does not see, such as
        those of an instruction (Lee et al., 2025, "NV-Embed"); the encoder sees them.
    """

    encoder: nn.Module
    pooler: Callable[[Encoded], jax.Array]
    head: nn.Module | None = None
    normalize: bool = True
    unpooled: tuple[int, int] = (0, 0)

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool = False) -> jax.Array:
        """Returns float32 [B, D] for a batch of `tokens`, `mask` and `segments` [B, L].

        Raises:
          ValueError: in training, the encoder's feed-forward layers return sums, which would be lost here.
        """
        vectors_BD, sums = self.with_sums(batch, train=train)
        if train and sums:
            raise ValueError(
                f"the encoder returns sums ({', '.join(sums)}) that a loss must see; call with_sums"
            )
        return vectors_BD

    def with_sums(
        self, batch: Mapping[str, jax.Array], *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns vectors as above, and the sums of the encoder's sparse layers, [Y, B, ...] each; `{}` where
        it is dense. See `moe.sums`."""
        encoded = self.encoder(batch, train=train)
        return self.pooled(self._shown(encoded, batch)), encoded.aux

    def _shown(self, encoded: Encoded, batch: Mapping[str, jax.Array]) -> Encoded:
        """Leaves the first tokens out of the mask."""
        if not any(self.unpooled):
            return encoded
        if "domains" not in batch:
            raise ValueError(f"unpooled is {self.unpooled} and the batch has no 'domains'; allowed: int [B]")
        first_B = jnp.asarray(self.unpooled)[batch["domains"]]
        number_BL = jnp.cumsum(encoded.mask.astype(jnp.int32), axis=1)
        return encoded.replace(mask=encoded.mask & (number_BL > first_B[:, None]))

    def of_layers(self, batch: Mapping[str, jax.Array], *, train: bool = False) -> jax.Array:
        """Returns float32 [Y, B, D]: the vectors that each layer would give, were it the last.

        Raises:
          ValueError: the encoder returns no layers, or its sparse layers give sums, which would be lost.
        """
        encoded = self._shown(self.encoder(batch, train=train), batch)
        if encoded.layers is None or encoded.aux:
            raise ValueError(
                "of_layers needs a dense encoder with return_layers=True and norm_layers=True; it "
                + (
                    "returns no layers"
                    if encoded.layers is None
                    else f"gives sums ({', '.join(encoded.aux)})"
                )
            )
        return jnp.stack([self.pooled(encoded.replace(last=layer_BLD)) for layer_BLD in encoded.layers])

    def pooled(self, encoded: Encoded) -> jax.Array:
        """Returns the vectors float32 [B, D] of texts that are encoded already."""
        x_BD = self.pooler(encoded)
        if self.head is not None:
            x_BD = self.head(x_BD)
        x_BD = x_BD.astype(jnp.float32)
        return named(l2_normalize(x_BD) if self.normalize else x_BD, "vectors")


class DualEncoder(nn.Module):
    """Two towers into one space; make it with `tied`, `separate` or `shared_embedding`.

    The domain of a text (see `moe.feed_forward.Context`) is its side: `QUERY` or `DOCUMENT`. So a router of
    a tied tower may send the two to experts of their own, as LIMoE's may with images and texts.

    Attributes:
      query: tower of queries.
      document: tower of documents; the same instance as `query` where they are tied.
    """

    query: nn.Module
    document: nn.Module

    def __call__(self, queries, documents, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Returns (query vectors [B, D], document vectors [N, D])."""
        return self.encode_query(queries, train=train), self.encode_document(documents, train=train)

    def with_sums(self, queries, documents, *, train: bool = False):
        """Returns query vectors [B, D], document vectors [N, D], and the sums of either tower's sparse
        layers, `{}` where it is dense."""
        query_BD, query_sums = self.query.with_sums(_of_side(queries, QUERY), train=train)
        document_ND, document_sums = self.document.with_sums(_of_side(documents, DOCUMENT), train=train)
        return query_BD, document_ND, query_sums, document_sums

    def of_layers(self, queries, documents, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Returns query vectors [Y, B, D] and document vectors [Y, N, D], see `Tower.of_layers`."""
        query_YBD = self.query.of_layers(_of_side(queries, QUERY), train=train)
        return query_YBD, self.document.of_layers(_of_side(documents, DOCUMENT), train=train)

    def encode_query(self, batch, *, train: bool = False) -> jax.Array:
        return self.query(_of_side(batch, QUERY), train=train)

    def encode_document(self, batch, *, train: bool = False) -> jax.Array:
        return self.document(_of_side(batch, DOCUMENT), train=train)


def _of_side(batch: Mapping[str, jax.Array], side: int) -> dict[str, jax.Array]:
    return {**batch, "domains": jnp.full(len(batch["tokens"]), side, jnp.int32)}


def tied(tower: nn.Module) -> DualEncoder:
    """One tower for queries and documents."""
    return DualEncoder(query=tower, document=tower)


def separate(query: nn.Module, document: nn.Module) -> DualEncoder:
    """Two towers that share nothing; they may differ in everything but the width of their vectors."""
    return DualEncoder(query=query, document=document)


def shared_encoder(query: Tower, document: Tower) -> DualEncoder:
    """Two towers with one encoder, the query's, and each its own pooler and head."""
    return DualEncoder(query=query, document=document.clone(encoder=query.encoder))


def shared_embedding(query: Tower, document: Tower) -> DualEncoder:
    """Two towers with one table of token embeddings, the query encoder's `embed`.

    Raises:
      ValueError: an encoder has no `embed`.
    """
    for side, tower in (("query", query), ("document", document)):
        if not hasattr(tower.encoder, "embed"):
            raise ValueError(
                f"shared_embedding: the {side} encoder {type(tower.encoder).__name__} has no `embed`"
            )
    encoder = document.encoder.clone(embed=query.encoder.embed)
    return DualEncoder(query=query, document=document.clone(encoder=encoder))


def l2_normalize(x_BD: jax.Array) -> jax.Array:
    """Scales vectors to length 1; the zero vector stays zero, with a gradient of zero."""
    squares_B1 = jnp.sum(jnp.square(x_BD), axis=-1, keepdims=True)
    nonzero_B1 = squares_B1 > 1e-24
    # The inner `where` keeps the gradient of what is not chosen finite.
    return jnp.where(nonzero_B1, x_BD * jax.lax.rsqrt(jnp.where(nonzero_B1, squares_B1, 1.0)), 0.0)
