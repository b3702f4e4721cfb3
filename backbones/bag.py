"""A weighted bag of subwords: the fast baseline on a CPU.

    count[v]  = sum over the positions with token v of the weight of their segment
    vector    = sum over v of saturation(count[v]) * token_weight[v] * embed[v]

Segments (a title, a text) are weighted before counts saturate, as the fields of BM25F are (Robertson,
Zaragoza and Taylor, 2004, "Simple BM25 Extension to Multiple Weighted Fields"). The sum is one product
of counts [B, V] with the table [V, D], and so is its gradient: at B = 512, L = 160, V = 8,000, D = 512
on two CPU cores that took 0.55 of the time of gathering [B, L, D], the form that the tests hold it to.

Dimensions: B batch, L length, D width, V vocabulary.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from backbones.embedding import TokenEmbedding
from backbones.encoded import Encoded, read_batch


def linear(counts: jax.Array) -> jax.Array:
    """n: every occurrence counts alike."""
    return counts


def logarithmic(counts: jax.Array) -> jax.Array:
    """log(1 + n): a token said twice weighs less than two tokens (Salton and Buckley, 1988, "Term-Weighting
    Approaches in Automatic Text Retrieval")."""
    return jnp.log1p(counts)


def saturating(counts: jax.Array, *, k1: float = 1.5) -> jax.Array:
    """n (k1 + 1) / (n + k1), as in BM25 (Robertson and Zaragoza, 2009, "The Probabilistic Relevance
    Framework: BM25 and Beyond")."""
    return counts * (k1 + 1) / (counts + k1)


class BagOfSubwords(nn.Module):
    """A text as the weighted sum of its tokens' vectors, in no order; towers normalize it.

    Both kinds of weight are stored as logarithms, so that they stay positive: `log_token_weight` [V], zero at
    first, and `log_segment_weight`.

    Attributes:
      embed: the table of token vectors; may be shared with another tower (see `TransformerEncoder`).
      saturation: what a weighted count of n is worth, an elementwise function with saturation(0) = 0.
      segment_weights: what a token of each segment counts at first, positive; () ignores `segments`.
      token_dropout: rate at which whole tokens are left out in training, before they are counted, as
        though they were not in the text: nothing is rescaled, and a text that would lose all keeps all.
        Iyyer et al. (2015), "Deep Unordered Composition Rivals Syntactic Methods for Text Classification".
    """

    embed: TokenEmbedding
    saturation: Callable[[jax.Array], jax.Array] = logarithmic
    segment_weights: tuple[float, ...] = ()
    token_dropout: float = 0.0

    def __post_init__(self):
        if any(not weight > 0 for weight in self.segment_weights):
            raise ValueError(f"segment_weights are {self.segment_weights}; allowed: positive numbers")
        if not 0 <= self.token_dropout < 1:
            raise ValueError(f"token_dropout is {self.token_dropout}; allowed: 0 to below 1")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, batch: Mapping[str, jax.Array], *, train: bool = False, prefix: jax.Array | None = None
    ) -> Encoded:
        """Encodes a batch.

        Args:
          batch: `tokens` int [B, L], `mask` [B, L]; with `segment_weights` also `segments` int [B, L].
          train: whether token dropout is on; it needs the stream "dropout".
          prefix: not supported, since a bag has no order: must be None.

        Returns:
          `Encoded` with `last` float32 [B, 1, D] and `mask` [B, 1], True where the text has any token. A
          token or segment out of range gives NaN. A text without tokens gives zeros.

        Raises:
          ValueError: prefix is given, or there are `segment_weights` and the batch has no `segments`.
        """
        if prefix is not None:
            raise ValueError("prefix is given; allowed for a bag of subwords: None")
        if self.segment_weights and "segments" not in batch:
            raise ValueError(f"segment_weights are {self.segment_weights} and the batch has no 'segments'")
        context = read_batch(batch, train)
        kept_BL = context.valid
        if train and self.token_dropout > 0:
            kept_BL = drop_tokens(self.make_rng("dropout"), context.valid, self.token_dropout)

        weight_BL = kept_BL.astype(jnp.float32)
        if self.segment_weights:
            initial_S = jnp.log(jnp.asarray(self.segment_weights, jnp.float32))
            logs_S = self.param("log_segment_weight", lambda rng: initial_S)
            segments_BL = jnp.where(context.valid, context.segments, 0)
            weight_BL *= jnp.exp(
                logs_S.at[segments_BL].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
            )
        size = self.embed.vocab_size
        counts_BV = count(context.tokens, weight_BL, size)
        token_weight_V = jnp.exp(self.param("log_token_weight", nn.initializers.zeros, (size,), jnp.float32))
        vector_BD = self.embed.combine(self.saturation(counts_BV) * token_weight_V[None, :])
        known_BL = (context.tokens >= 0) & (context.tokens < size)
        vector_BD = jnp.where(known_BL.all(axis=1, keepdims=True), vector_BD, jnp.nan)
        return Encoded(last=vector_BD[:, None, :], mask=jnp.any(context.valid, axis=1, keepdims=True))


def count(tokens_BL: jax.Array, weight_BL: jax.Array, vocab_size: int) -> jax.Array:
    """The summed weight of each vocabulary entry in each text, float32 [B, V]; ids out of range count not."""
    rows_B1 = jnp.arange(tokens_BL.shape[0])[:, None]
    tokens_BL = jnp.where(tokens_BL < 0, vocab_size, tokens_BL)
    return jnp.zeros((tokens_BL.shape[0], vocab_size)).at[rows_B1, tokens_BL].add(weight_BL, mode="drop")


def drop_tokens(rng: jax.Array, valid_BL: jax.Array, rate: float) -> jax.Array:
    """A random part of the valid positions, each kept with probability 1 - rate; all, where none would be."""
    kept_BL = valid_BL & jax.random.bernoulli(rng, 1.0 - rate, valid_BL.shape)
    return jnp.where(jnp.any(kept_BL, axis=1, keepdims=True), kept_BL, valid_BL)
