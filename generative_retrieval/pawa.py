"""The prefix-aware weight-adaptive decoder of the Neural Corpus Indexer (Wang et al., 2022, "A Neural Corpus
Indexer for Document Retrieval"): what a symbol's logit weighs depends on the symbols before it.

A second, small decoder reads the symbols alone, never the query, and gives each position an output table of
its own, on top of the shared one:

    a = adaptor(e; symbols before)                    [D]
    logits = h (W + reshape(a L, [D, V]))             h [D] of the main decoder, W [D, V], L [D, D V]

where e is one learned vector that the adaptor's cross-attention reads. The paper's ids are two-dimensional:
each position has symbols of its own, see `generative_retrieval.schemes.by_position`. L makes the cost: D D V
parameters, and as many products for every symbol that is read, beside D V of a plain output. Pradeep et al.
(2023), "How Does Generative Retrieval Scale to Millions of Passages?", find that it does not pay once this
cost is counted.

    dict(
        name="generative_retrieval.pawa.PrefixAware",
        encoder=dict(name="backbones.encoder.TransformerEncoder", ...),
        decoder=dict(name="backbones.decoder.TransformerDecoder", ...),
        adaptor_block=dict(
            name="backbones.decoder_blocks.PostNorm",
            attention=dict(name="backbones.cached_attention.CachedAttention", heads=8),
            cross_attention=dict(name="backbones.cached_attention.CachedAttention", heads=8),
            feed_forward=dict(name="moe.feed_forward.Dense", width=2048),
            norm=dict(name="backbones.norms.LayerNorm"),
        ),
    )

Letters: B rows, S length of a text, T symbols of an id, K ids that are being spelled, M slots, D width, V
symbols.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from backbones.cache import Cache
from backbones.decoder import TransformerDecoder
from backbones.encoded import Encoded
from generative_retrieval.models import EncoderDecoder, Spelled, read_at, read_before
from training.task import Batch


class PrefixAware(EncoderDecoder):
    """An encoder and a decoder as in `EncoderDecoder`, with an output that adapts to the prefix.

    Attributes:
      adaptor_block: a layer of the adaptor, with cross-attention.
      adaptor_layers: how many; 4 in the authors' code.
      adaptor_norm: after the last of them; None with post-norm blocks, as there.

    Raises:
      ValueError: there is no adaptor_block, or it has no cross-attention.
    """

    adaptor_block: nn.Module | None = None
    adaptor_layers: int = 4
    adaptor_norm: nn.Module | None = None

    def setup(self):
        if self.adaptor_block is None:
            raise ValueError("adaptor_block is None; allowed: one of backbones.decoder_blocks")
        self.adaptor = TransformerDecoder(
            embed=self.decoder.embed,
            block=self.adaptor_block,
            num_layers=self.adaptor_layers,
            norm=self.adaptor_norm,
            output=Tables(self.docid_size),
            dropout=self.decoder.dropout,
            dtype=self.decoder.dtype,
        )
        width = self.decoder.embed.width
        self.origin = self.param("origin", nn.initializers.uniform(1.0), (1, 1, width), jnp.float32)

    def __call__(self, batch: Batch, *, train: bool = False) -> Spelled:
        """See `EncoderDecoder`."""
        spelled = super().__call__(batch, train=train)
        read = {"tokens": read_before(batch["targets"]), "mask": batch["target_mask"]}
        adapted = self.adaptor(read, self._source(len(read["tokens"])), train=train)
        aux = {**spelled.aux, **({"adaptor": adapted.aux} if adapted.aux else {})}
        return spelled.replace(logits=spelled.logits + product(spelled.last, adapted.logits), aux=aux)

    def start(self, batch: Batch, slots: int, *, allow_batch_dependence: bool = False) -> tuple[Cache, Cache]:
        """See `EncoderDecoder`; the adaptor has a cache of its own."""
        allowed = dict(allow_batch_dependence=allow_batch_dependence)
        rows = len(batch["tokens"])
        own = self.adaptor.start(rows, slots, self._source(rows), **allowed)
        return super().start(batch, slots, **allowed), own

    def step(
        self, symbols_BK: jax.Array, depth: jax.Array, visible_BKM: jax.Array, cache: tuple[Cache, Cache]
    ) -> tuple[jax.Array, tuple[Cache, Cache]]:
        """See `speller.Speller.step`."""
        read = read_at(symbols_BK, depth)
        decoded, main = self.decoder.step(read, cache[0], visible_BKM[:, None])
        adapted, own = self.adaptor.step(read, cache[1], visible_BKM[:, None])
        return decoded.logits + product(decoded.last, adapted.logits), (main, own)

    def _source(self, rows: int) -> Encoded:
        """What the adaptor's cross-attention reads: the same one vector in every row."""
        last = jnp.broadcast_to(self.origin, (rows, *self.origin.shape[1:]))
        return Encoded(last=last, mask=jnp.ones(last.shape[:2], bool))


class Tables(nn.Module):
    """An output table for each position, flat: the `output` of the adaptor.

    Attributes:
      size: V.
    """

    size: int

    @nn.compact
    def attend(self, x_BTD: jax.Array) -> jax.Array:
        """float32 [B, T, D] to [B, T, D V]."""
        width = x_BTD.shape[-1]
        # so that h times the result is of the size of other logits, about 1
        init = nn.initializers.normal(1.0 / width)
        kernel = self.param("kernel", init, (width, width * self.size), jnp.float32)
        return x_BTD @ kernel


def product(last_BTD: jax.Array, tables: jax.Array) -> jax.Array:
    """Logits float32 [B, T, V] of float [B, T, D] with a table [B, T, D V] at each position."""
    batch, length, width = last_BTD.shape
    tables_BTDV = tables.reshape(batch, length, width, -1)
    return jnp.einsum("btd,btdv->btv", last_BTD.astype(jnp.float32), tables_BTDV)
