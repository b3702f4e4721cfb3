"""A weighted bag of subwords: the fast baseline on a CPU.

The vector of a text is the sum of its tokens' vectors, each weighted by what the token is (learned, from idf
if wanted), by which segment it stands in, and by how often it occurs. The weights are made per position
[B, L], and the sum is one batched product over gathered vectors. It equals a matrix of counts [B, V] times
the table [V, D], whose cost grows with V and not with L.

Dimensions: B batch, L length, D width, V vocabulary.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from backbones.encoded import Encoded, read_batch


def linear(counts: jax.Array) -> jax.Array:
    """n: every occurrence counts alike. Float counts of any shape to weights of the same shape."""
    return counts


def logarithmic(counts: jax.Array) -> jax.Array:
    """log(1 + n): a token said twice weighs less than two tokens. Salton and Buckley (1988), "Term-Weighting
    Approaches in Automatic Text Retrieval". Float counts of any shape to weights of the same shape."""
    return jnp.log1p(counts)


def saturating(counts: jax.Array, k1: float = 1.5) -> jax.Array:
    """n (k1 + 1) / (n + k1), as in BM25: at most k1 + 1. Robertson and Zaragoza (2009), "The Probabilistic
    Relevance Framework: BM25 and Beyond". Float counts of any shape to weights of the same shape."""
    return counts * (k1 + 1) / (counts + k1)


def occurrences(tokens_BL: jax.Array, valid_BL: jax.Array) -> jax.Array:
    """How often the token at each position occurs in its row, padding apart: float32 [B, L], 0 there."""
    same_BLL = (tokens_BL[:, :, None] == tokens_BL[:, None, :]) & valid_BL[:, :, None]
    return jnp.sum(same_BLL, axis=1, dtype=jnp.float32) * valid_BL


def saturated_share(counts_BL: jax.Array, saturation: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """What one of n occurrences contributes, so that together they weigh saturation(n): float32 [B, L]."""
    return jnp.where(counts_BL > 0, saturation(counts_BL) / jnp.maximum(counts_BL, 1.0), 0.0)


class BagOfSubwords(nn.Module):
    """A weighted sum of token vectors.

        vector = sum over positions of weight[token] segment_weight[segment] saturation(n) / n embed[token]

    where n is how often the token occurs in the text.

    Both weights are stored as logarithms, float32 and zero at first, so that they stay positive:
    `log_token_weight` [V] and `log_segment_weight` [num_segments]; `with_token_weights` puts idf there. The
    sum is not divided by the length; towers normalize.

    Attributes:
      embed: `tokens [B, L] -> float [B, L, D]`; may be shared with another tower (see `TransformerEncoder`).
      vocab_size: V, the number of token weights.
      saturation: what a token that occurs n times weighs, an elementwise function of n: `linear`,
        `logarithmic`, `saturating`.
      num_segments: S; 0 ignores `segments`.
      token_dropout: rate at which whole tokens are left out in training, before they are counted, as though
        they were not in the text: nothing is rescaled, and a text that would lose all keeps all. Iyyer et
        al. (2015), "Deep Unordered Composition Rivals Syntactic Methods for Text Classification".
    """

    embed: nn.Module
    vocab_size: int
    saturation: Callable[[jax.Array], jax.Array] = logarithmic
    num_segments: int = 0
    token_dropout: float = 0.0

    @nn.compact
    def __call__(
        self, batch: Mapping[str, jax.Array], *, train: bool = False, prefix: jax.Array | None = None
    ) -> Encoded:
        """Encodes a batch.

        Args:
          batch: `tokens` int [B, L], `mask` [B, L]; `segments` int [B, L] where `num_segments` is not 0.
          train: whether token dropout is on; it needs the stream "dropout".
          prefix: not supported, since a bag has no order: must be None.

        Returns:
          `Encoded` with `last` float32 [B, 1, D] and `mask` [B, 1], True where the text has any token. A
          token or segment out of range gives NaN. A text without tokens gives zeros.

        Raises:
          ValueError: prefix is given, or `num_segments` is positive and the batch has no `segments`.
        """
        if prefix is not None:
            raise ValueError("prefix is given; allowed for a bag of subwords: None")
        if self.num_segments and "segments" not in batch:
            raise ValueError(f"num_segments is {self.num_segments} and the batch has no 'segments'")
        context = read_batch(batch, train)
        kept_BL = context.valid
        if train and self.token_dropout > 0:
            kept_BL = drop_tokens(self.make_rng("dropout"), context.valid, self.token_dropout)

        weight_BL = saturated_share(occurrences(context.tokens, kept_BL), self.saturation)
        weight_BL *= self.look_up("log_token_weight", self.vocab_size, context.tokens)
        if self.num_segments:
            weight_BL *= self.look_up("log_segment_weight", self.num_segments, context.segments)
        vector_BD = jnp.einsum("bl,bld->bd", weight_BL, self.embed(context.tokens))
        return Encoded(last=vector_BD[:, None, :], mask=jnp.any(context.valid, axis=1, keepdims=True))

    def look_up(self, name: str, size: int, ids_BL: jax.Array) -> jax.Array:
        """exp of the parameter `name` [size] at ids [B, L]; NaN where an id is out of range."""
        logs = self.param(name, nn.initializers.zeros, (size,), jnp.float32)
        return jnp.exp(logs.at[ids_BL].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False))


def drop_tokens(rng: jax.Array, valid_BL: jax.Array, rate: float) -> jax.Array:
    """Each valid position with probability 1 - rate; all of them where none would be left."""
    kept_BL = valid_BL & jax.random.bernoulli(rng, 1.0 - rate, valid_BL.shape)
    return jnp.where(jnp.any(kept_BL, axis=1, keepdims=True), kept_BL, valid_BL)


def with_token_weights(params: Mapping, weights_V: jax.Array) -> dict:
    """The parameters of a bag with token weights set, from idf for example.

    Args:
      params: the parameters of `BagOfSubwords`.
      weights_V: float [V], all positive.

    Returns:
      A copy of `params` with another `log_token_weight`.

    Raises:
      ValueError: a shape other than [V], or a weight that is not positive and finite.
    """
    logs = jnp.log(jnp.asarray(weights_V, jnp.float32))
    shape = params["log_token_weight"].shape
    if logs.shape != shape:
        raise ValueError(f"token weights have shape {logs.shape}; allowed: {shape}, one per vocabulary entry")
    if not jnp.all(jnp.isfinite(logs)):
        raise ValueError("a token weight is zero, negative or not finite; allowed: positive numbers")
    return {**params, "log_token_weight": logs}
