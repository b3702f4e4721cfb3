"""An encoder-decoder that can copy: each word it writes is one of its vocabulary, or one of the text's.

A rare name is in the text and in the query, and a small model from scratch has seen it too seldom to spell
it.

Letters: B rows, S length of a text, T symbols of a query, K queries that are being spelled, M slots, D model
width, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from backbones.cache import Cache
from generative_retrieval.models import EncoderDecoder, Spelled, read_at, texts
from training.task import Batch

_LEAST = 1e-20  # keeps the logarithm of what neither way allows finite


@struct.dataclass
class Source:
    """What is copied from, and the decoder's cache.

    Attributes:
      keys_BSD: float32, what says whether a word of the text comes next.
      tokens_BS: int32.
      mask_BS: bool.
      cache: the decoder's; None in training.
    """

    keys_BSD: jax.Array
    tokens_BS: jax.Array
    mask_BS: jax.Array
    cache: Cache | None = None


class CopyingEncoderDecoder(EncoderDecoder):
    """The pointer-generator of See et al. (2017), "Get To The Point: Summarization with Pointer-Generator
    Networks", on a Transformer:

        p(word) = (1 - g) softmax(logits)[word] + g (attention on the places of the text that hold the word)

    g, the share that is copied, is a sigmoid of a linear function of the decoder's last layer. Unlike theirs,
    this attention has a query and keys of its own, and the key of a place is made of the word before it too:
    a decoder that has just copied that word finds by it alone where to go on.

    What is written is either the words that are read, and then `query_generator.copying` shares the table; or
    docids that are words, such as `schemes.text.Titles`, whose symbols stand one behind the words'. Its
    `logits` are log-probabilities.

    Attributes:
      first: the symbol of word 0.
    """

    first: int = 0

    def setup(self):
        width = self.encoder.embed.width
        self.copy_query, self.copy_key, self.copy_before = (nn.Dense(width, use_bias=False) for _ in range(3))
        self.copy_gate = nn.Dense(1)

    def __call__(self, batch: Batch, *, train: bool = False) -> Spelled:
        """See `models.EncoderDecoder`."""
        spelled = super().__call__(batch, train=train)
        logits_BTV = self._mixed(spelled.logits, spelled.last, self._source(batch, spelled.encoded.last))
        return spelled.replace(logits=logits_BTV)

    def start(self, batch: Batch, slots: int, *, allow_batch_dependence: bool = False) -> Source:
        """See `speller.Speller.start`."""
        encoded = self.encoder(texts(batch))
        cache = self.decoder.start(
            len(batch["tokens"]), slots, encoded, allow_batch_dependence=allow_batch_dependence
        )
        return self._source(batch, encoded.last).replace(cache=cache)

    def step(
        self, symbols_BK: jax.Array, depth: jax.Array, visible_BKM: jax.Array, source: Source
    ) -> tuple[jax.Array, Source]:
        """See `speller.Speller.step`."""
        decoded, cache = self.decoder.step(read_at(symbols_BK, depth), source.cache, visible_BKM[:, None])
        return self._mixed(decoded.logits, decoded.last, source), source.replace(cache=cache)

    def _source(self, batch: Batch, encoded_BSD: jax.Array) -> Source:
        tokens_BS, mask_BS = batch["tokens"], batch["mask"].astype(bool)
        before_BS = jnp.pad(tokens_BS[:, :-1], ((0, 0), (1, 0)))
        before_BSD = self.encoder.embed(before_BS)
        keys_BSD = self.copy_key(encoded_BSD.astype(jnp.float32)) + self.copy_before(before_BSD)
        return Source(keys_BSD, tokens_BS, mask_BS)

    def _mixed(self, logits_BTV: jax.Array, last_BTD: jax.Array, source: Source) -> jax.Array:
        """Log-probabilities float32 [B, T, V]."""
        last_BTD = last_BTD.astype(jnp.float32)
        queries_BTD = self.copy_query(last_BTD) / last_BTD.shape[-1] ** 0.5
        scores_BTS = jnp.einsum("btd,bsd->bts", queries_BTD, source.keys_BSD)
        seen_B1S = source.mask_BS[:, None] | ~source.mask_BS.any(axis=1)[:, None, None]  # of padding: all
        copied_BTS = jax.nn.softmax(jnp.where(seen_B1S, scores_BTS, -jnp.inf), axis=-1)
        share_BT1 = jax.nn.sigmoid(self.copy_gate(last_BTD))
        p_BTV = (1 - share_BT1) * jax.nn.softmax(logits_BTV, axis=-1)

        def added(p_TV, copied_TS, tokens_S):
            return p_TV.at[:, tokens_S].add(copied_TS)

        p_BTV = jax.vmap(added)(p_BTV, share_BT1 * copied_BTS, source.tokens_BS + self.first)
        return jnp.log(p_BTV + _LEAST)
