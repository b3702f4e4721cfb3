"""A decoder alone that spells docids: the words of the text are its prompt, the symbols of the id go on from
it.

    dict(
        name="generative_retrieval.decoder_only.DecoderOnly",
        decoder=dict(
            name="backbones.decoder.TransformerDecoder",
            embed=dict(
                name="generative_retrieval.decoder_only.TwoTables",
                text=dict(name="backbones.embedding.TokenEmbedding", vocab_size=16384, width=256),
                docid=dict(name="backbones.embedding.TokenEmbedding", vocab_size=33, width=256),
            ),
            visible=dict(name="backbones.masks.prefix_lm"),
            ...
        ),
    )

With `backbones.masks.prefix_lm` every word sees the whole prompt (Raffel et al., 2020, call it a prefix
language model); with `causal`, the default of a decoder, only what is before it.

Letters: B rows, S length of a text, T symbols of an id, K ids that are being spelled, M slots, D width, V
symbols.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from backbones.cache import Cache
from backbones.decoder import TransformerDecoder
from backbones.embedding import TokenEmbedding
from generative_retrieval.models import Spelled, read_before
from training.task import Batch

PROMPT, ID = 0, 1  # segments, for masks.prefix_lm


class TwoTables(nn.Module):
    """Words and symbols in one array of tokens: symbol s is token `text.vocab_size + s`.

    Attributes:
      text: of words.
      docid: of symbols; it makes their logits too.
    """

    text: TokenEmbedding
    docid: TokenEmbedding

    def __call__(self, tokens_BL: jax.Array) -> jax.Array:
        """int [B, L] to float32 [B, L, D]; NaN for a token outside of both tables."""
        words = self.text.vocab_size
        is_word_BL = tokens_BL < words
        word_BLD = self.text(jnp.where(is_word_BL, tokens_BL, 0))
        symbol_BLD = self.docid(jnp.where(is_word_BL, 0, tokens_BL - words))
        return jnp.where(is_word_BL[:, :, None], word_BLD, symbol_BLD)

    def attend(self, x: jax.Array) -> jax.Array:
        """Float [..., D] to [..., 0], no logits: most positions are words, which have none to be computed."""
        return x[..., :0]


class DecoderOnly(nn.Module):
    """Text and id as one row of a decoder; the loss is of the id alone.

    An id's positions go on from the last word of its row, so padding between them moves nothing.

    Attributes:
      decoder: without cross-attention; its `embed` is `TwoTables`, its `output` None.

    Raises:
      ValueError: it is another decoder.
    """

    decoder: TransformerDecoder

    def setup(self):
        if not isinstance(self.decoder.embed, TwoTables) or self.decoder.output is not None:
            raise ValueError(
                f"decoder.embed is {type(self.decoder.embed).__name__} and decoder.output "
                f"{type(self.decoder.output).__name__}; allowed: TwoTables, and None"
            )

    @property
    def text_size(self) -> int:
        """How many words there is room for."""
        return self.decoder.embed.text.vocab_size

    @property
    def docid_size(self) -> int:
        """How many symbols there is room for."""
        return self.decoder.embed.docid.vocab_size

    def __call__(self, batch: Batch, *, train: bool = False) -> Spelled:
        """Expects `tokens` and `mask` [B, S], `targets` and `target_mask` [B, T]."""
        prompt = _prompt(batch)
        symbols_BT = read_before(batch["targets"])
        depths_1T = jnp.arange(symbols_BT.shape[1], dtype=jnp.int32)[None]
        written = self._written(symbols_BT, batch["target_mask"], prompt["mask"], depths_1T)
        whole = {name: jnp.concatenate([prompt[name], written[name]], axis=1) for name in prompt}
        decoded = self.decoder(whole, train=train)
        last_BTD = decoded.last[:, prompt["mask"].shape[1] :]
        return Spelled(self._logits(last_BTD), {"decoder": decoded.aux} if decoded.aux else {}, last=last_BTD)

    def start(self, batch: Batch, slots: int, *, allow_batch_dependence: bool = False) -> Cache:
        """Reads texts; see `speller.Speller.start`."""
        prompt = _prompt(batch)
        rows, length = prompt["mask"].shape
        cache = self.decoder.start(rows, length + slots, allow_batch_dependence=allow_batch_dependence)
        return self.decoder.step(prompt, cache)[1]

    def step(
        self, symbols_BK: jax.Array, depth: jax.Array, visible_BKM: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """See `speller.Speller.step`."""
        length = cache.valid.shape[-1] - visible_BKM.shape[-1]
        words_BS = cache.valid[0, :, :length]
        shape = (*symbols_BK.shape, length)
        seen_BKM = jnp.concatenate([jnp.broadcast_to(words_BS[:, None], shape), visible_BKM], axis=2)
        written = self._written(symbols_BK, jnp.ones_like(symbols_BK, bool), words_BS, depth[None, None])
        decoded, cache = self.decoder.step(written, cache, seen_BKM[:, None])
        return self._logits(decoded.last), cache

    def _written(self, symbols_BT, mask_BT, words_BS, depths) -> dict[str, jax.Array]:
        """Symbols as the decoder reads them; `depths` int32, broadcastable to [B, T]."""
        first_B1 = jnp.sum(words_BS, axis=1, keepdims=True, dtype=jnp.int32)
        return {
            "tokens": symbols_BT + self.text_size,
            "mask": mask_BT.astype(bool),
            "segments": jnp.full_like(symbols_BT, ID),
            "positions": jnp.broadcast_to(first_B1 + depths, symbols_BT.shape),
        }

    def _logits(self, last_BTD: jax.Array) -> jax.Array:
        # float32, since bfloat16 would make ties of logits that a search must tell apart
        return self.decoder.embed.docid.attend(last_BTD.astype(jnp.float32))


def _prompt(batch: Batch) -> dict[str, jax.Array]:
    """Words as the decoder reads them."""
    tokens_BS, mask_BS = jnp.asarray(batch["tokens"]), jnp.asarray(batch["mask"]).astype(bool)
    positions_BS = jnp.cumsum(mask_BS, axis=1, dtype=jnp.int32) - mask_BS
    segments_BS = jnp.full_like(tokens_BS, PROMPT)
    return {"tokens": tokens_BS, "mask": mask_BS, "segments": segments_BS, "positions": positions_BS}
