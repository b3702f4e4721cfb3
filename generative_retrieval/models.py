"""Models that spell docids, as an encoder and a decoder.

    dict(
        name="generative_retrieval.models.EncoderDecoder",
        encoder=dict(name="backbones.encoder.TransformerEncoder", ...),
        decoder=dict(name="backbones.decoder.TransformerDecoder", ...),
    )

A model has three methods: `__call__` for training, with whole ids; and `start` and `step`, of which
`speller.of` makes what searches use. It says how many entries its two vocabularies have room for:
`text_size`, the words of a query, and `docid_size`, the symbols of an id. It may have `documents`, the most
that there may be, and `check(doc_ids)`, which raises DataError where it is not to begin with these documents.

Letters: B rows, S length of a text, T symbols of an id, K ids that are being spelled, M slots, V symbols.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from backbones.cache import Cache
from backbones.decoder import TransformerDecoder
from backbones.encoded import Encoded
from backbones.encoder import TransformerEncoder
from generative_retrieval.docids import END
from training.task import Batch

TEXT = ("tokens", "mask", "segments", "positions", "domains")


@struct.dataclass
class Spelled:
    """What a model makes of texts and ids.

    Attributes:
      logits: float32 [B, T, V]; those at position t are for symbol t.
      aux: additive sums of sparse layers by place, "encoder" and "decoder"; `{}` of a dense model.
      encoded: of the texts, for whoever shares the encoder; None where there is none.
      last: float [B, T, D], what the logits are made of; None where a model does not say.
    """

    logits: jax.Array
    aux: dict[str, Any]
    encoded: Encoded | None = None
    last: jax.Array | None = None


class EncoderDecoder(nn.Module):
    """Tay et al. (2022), "Transformer Memory as a Differentiable Search Index": a text is encoded, its docid
    decoded.

    Attributes:
      encoder: of texts.
      decoder: of ids, with cross-attention; its `embed` has the symbols, or words where it writes text.
    """

    encoder: TransformerEncoder
    decoder: TransformerDecoder

    @property
    def text_size(self) -> int:
        """How many words there is room for."""
        return self.encoder.embed.vocab_size

    @property
    def docid_size(self) -> int:
        """How many symbols there is room for."""
        return self.decoder.embed.vocab_size

    def __call__(self, batch: Batch, *, train: bool = False) -> Spelled:
        """Expects `tokens` and `mask` [B, S], `targets` and `target_mask` [B, T]."""
        encoded = self.encoder(texts(batch), train=train)
        decoded = self.decoder(
            {"tokens": read_before(batch["targets"]), "mask": batch["target_mask"]}, encoded, train=train
        )
        aux = {"encoder": encoded.aux, "decoder": decoded.aux}
        aux = {place: sums for place, sums in aux.items() if sums}
        return Spelled(decoded.logits, aux, encoded, decoded.last)

    def start(self, batch: Batch, slots: int, *, allow_batch_dependence: bool = False) -> Cache:
        """Encodes texts; see `speller.Speller.start`."""
        encoded = self.encoder(texts(batch))
        return self.decoder.start(
            len(batch["tokens"]), slots, encoded, allow_batch_dependence=allow_batch_dependence
        )

    def step(
        self, symbols_BK: jax.Array, depth: jax.Array, visible_BKM: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """See `speller.Speller.step`."""
        decoded, cache = self.decoder.step(read_at(symbols_BK, depth), cache, visible_BKM[:, None])
        return decoded.logits, cache


def texts(batch: Batch) -> dict[str, jax.Array]:
    """What an encoder reads of a batch."""
    return {name: batch[name] for name in TEXT if name in batch}


def read_before(targets_BT: jax.Array) -> jax.Array:
    """What a decoder reads to write `targets`: END, and all of them but the last."""
    return jnp.pad(targets_BT[:, :-1], ((0, 0), (1, 0)), constant_values=END)


def read_at(symbols_BK: jax.Array, depth: jax.Array) -> dict[str, jax.Array]:
    """What a decoder reads of K ids of each row, all at one depth."""
    return {
        "tokens": symbols_BK,
        "mask": jnp.ones_like(symbols_BK, bool),
        "positions": jnp.full_like(symbols_BK, depth),
    }
