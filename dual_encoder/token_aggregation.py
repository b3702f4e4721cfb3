"""Tokens as weighted words of the vocabulary, folded into a short vector that stands beside the first
token's.

Lin, Li and Lin (2023), "Aggretriever: A Simple Approach to Aggregate Textual Representations for Robust Dense
Passage Retrieval", agg*:

    p_t = softmax over v of mlm(h_t)           what a head of masked language modelling says of token t
    w_t = h_t W + b                            its weight
    u_v = max(0, max over t of w_t p_t[v])     over all tokens but the first
    a, b = max over the v with v mod 2d = 2j, and with v mod 2d = 2j + 1, of u_v
    agg_j = a if a > b else -b

and the vector of the text is [h_0 W', agg], compared by inner products: `towers.Tower` with normalize=False.
The paper has d = 640 and 128 numbers of the first token.

The 0 in u is what padding comes to in their code, in every row that has some; here each row has it, so that
padding changes nothing. They drop the first entries of the vocabulary where these make 2d divide it; here it
is filled up. Their training adds half the loss of either part alone: `objectives.parts`.

Letters: B batch, L length, D width of the encoder, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from backbones import norms
from backbones.embedding import TokenEmbedding
from backbones.encoded import Encoded
from dual_encoder import poolers
from dual_encoder.towers import Tower


class TokenAggregation(nn.Module):
    """The pooler `Encoded -> float32 [B, first_width + width]`.

    Attributes:
      embed: the encoder's table, which is the output layer of the head too (Devlin et al., 2019).
      width: d.
      first_width: numbers of the first token; 0 leaves it out.
    """

    embed: TokenEmbedding
    width: int
    first_width: int

    @nn.compact
    def __call__(self, encoded: Encoded) -> jax.Array:
        if self.width < 1 or self.first_width < 0:
            raise ValueError(
                f"width is {self.width} and first_width {self.first_width}; allowed: 1 or more, 0 or more"
            )
        x_BLD = jnp.where(encoded.mask[:, :, None], encoded.last.astype(jnp.float32), 0)
        weight_BL = nn.Dense(1, name="weight")(x_BLD)[:, :, 0]
        hidden_BLD = nn.gelu(nn.Dense(x_BLD.shape[-1], name="transform")(x_BLD))
        logits_BLV = self.embed.attend(norms.LayerNorm(name="transform_norm")(hidden_BLD))
        bias_V = self.param("bias", nn.initializers.zeros, logits_BLV.shape[-1:], jnp.float32)
        probability_BLV = jax.nn.softmax(logits_BLV + bias_V[None, None], axis=-1)
        seen_BL = encoded.mask.at[:, 0].set(False)
        weight_BL = jnp.where(seen_BL, weight_BL, 0)
        words_BV = jnp.maximum((probability_BLV * weight_BL[:, :, None]).max(axis=1), 0)
        found = [folded(words_BV, self.width)]
        if self.first_width:
            found.insert(0, nn.Dense(self.first_width, name="first")(x_BLD[:, 0]))
        return poolers.empty_to_zero(jnp.concatenate(found, axis=1), encoded.mask)


def folded(words_BV: jax.Array, width: int) -> jax.Array:
    """Returns agg [B, d] of weights of words [B, V], 0 or more."""
    words_BV = jnp.pad(words_BV, ((0, 0), (0, -words_BV.shape[1] % (2 * width))))
    pairs_Bd2 = words_BV.reshape(len(words_BV), -1, width, 2).max(axis=1)
    plus_Bd, minus_Bd = pairs_Bd2[:, :, 0], pairs_Bd2[:, :, 1]
    return jnp.where(plus_Bd > minus_Bd, plus_Bd, -minus_Bd)


def tower(encoder: nn.Module, *, width: int, first_width: int) -> Tower:
    """A tower with this pooler, over the encoder's own table of tokens.

    Raises:
      ValueError: the encoder has no `embed`.
    """
    if not hasattr(encoder, "embed"):
        raise ValueError(
            f"encoder {type(encoder).__name__} has no `embed`; allowed: one with a table of tokens"
        )
    return Tower(encoder, TokenAggregation(encoder.embed, width, first_width), normalize=False)
