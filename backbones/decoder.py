"""The Transformer decoder: a whole text at once (`__call__`), or a few tokens a call (`step`) with a cache.

    logits = decoder.apply(params, batch, encoded).logits  # training

    cache = decoder.apply(params, 8, 32, encoded, method="start")  # 8 texts of at most 32 tokens
    decoded, cache = decoder.apply(params, new, cache, method="step")

With a mask that looks only back, both give the same values, unless an expert's capacity makes a token depend
on those before it (`moe.leakage`): in `step`, new tokens compete among themselves alone. A layer in which a
token depends on later ones is refused. Like the encoder it is made of templates:

    dict(
        name="backbones.decoder.TransformerDecoder",
        num_layers=4,
        embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=16384, width=256),
        block=dict(
            name="backbones.decoder_blocks.PreNorm",
            attention=dict(name="backbones.cached_attention.CachedAttention", heads=4),
            cross_attention=dict(name="backbones.cached_attention.CachedAttention", heads=4),
            feed_forward=dict(name="moe.feed_forward.Dense", width=1024),
        ),
        bias=dict(name="backbones.relative.RelativeBias", heads=4, bidirectional=False),
    )

Dimensions: B batch, L length (of `step`: new tokens), D model width, H heads, M slots of the cache, S length
of the encoder's output, V vocabulary, Y number of layers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from backbones import cache as caches
from backbones import norms
from backbones.cache import Cache
from backbones.decoder_blocks import DecoderBlock, Memory
from backbones.encoded import Encoded, read_batch
from backbones.layers import scanned
from backbones.masks import Mask, causal
from backbones.periods import DecoderPeriod
from moe import leakage
from moe.feed_forward import Context
from training.activations import named


@struct.dataclass
class Decoded:
    """The output of a decoder.

    Attributes:
      logits: float32 [B, L, V]; those at position t are for the token after it.
      last: float [B, L, D], the last layer after the final norm.
      mask: bool [B, L], which positions hold something; at the others logits and last are zero.
      aux: additive sums of the feed-forward layers, each with a leading axis [num_layers]; `{}` where dense.
    """

    logits: jax.Array
    last: jax.Array
    mask: jax.Array
    aux: dict[str, Any] = struct.field(default_factory=dict)


class TransformerDecoder(nn.Module):
    """A stack of decoder blocks of one kind (Vaswani et al., 2017), and the table that makes logits.

    The batch holds what the decoder reads: for teacher forcing, the target moved right by one, behind a token
    that begins every text. Layers, parameters and dtypes are as in `TransformerEncoder`.

    Attributes:
      embed: `tokens [B, L] -> float [B, L, D]`. One instance given to an encoder as well is one table.
      block: one layer, from `backbones.decoder_blocks`, or several, `periods.DecoderPeriod`; with
        `cross_attention` it needs an encoder's output.
      num_layers: how many blocks.
      position: module `(x, context) -> x` after the embedding, such as `positions.LearnedPositions`; or None.
      norm: module after the last layer, its parameters under `final_norm`; None with post-norm blocks.
      output: module with `attend(x) -> logits`, such as another `TokenEmbedding`; None takes `embed`.
      visible: `context -> bool`, broadcastable to [B, H, L, L] with four axes; see `backbones.masks`.
      bias: module `(positions, positions) -> float` for all layers, such as `relative.RelativeBias`; or None.
      dropout: rate of dropout on the embedded tokens.
      remat: what the backward pass keeps, from `backbones.remat`; None keeps everything.
      unroll: how many layers are unrolled in each step of the loop; the values do not depend on it.
      dtype: "float32" or "bfloat16".
    """

    embed: nn.Module
    block: nn.Module
    num_layers: int
    position: nn.Module | None = None
    norm: nn.Module | None = norms.RMSNorm()
    output: nn.Module | None = None
    visible: Mask = causal
    bias: nn.Module | None = None
    dropout: float = 0.0
    remat: Callable[..., bool] | None = None
    unroll: int = 1
    dtype: str = "float32"

    def setup(self):
        self.drop = nn.Dropout(self.dropout)
        if self.norm is not None:
            self.final_norm = self.norm.clone(name=None)

    def __call__(
        self, batch: Mapping[str, jax.Array], encoded: Encoded | None = None, *, train: bool = False
    ) -> Decoded:
        """Decodes whole texts.

        Args:
          batch: `tokens` int [B, L], `mask` [B, L]; optionally `segments` and `positions`, int [B, L].
          encoded: the encoder's output, for cross-attention.
          train: whether dropout is on; it needs the stream "dropout".

        Returns:
          `Decoded`.

        Raises:
          ValueError: num_layers or unroll is not positive, the arrays of the batch differ in shape, or
            `encoded` is missing or not wanted.
          DependenceError: a token would depend on later ones.
        """
        self._check(encoded, train=train)
        context = read_batch(batch, train)
        visible = self.visible(context)
        bias = None if self.bias is None else self.bias(context.positions, context.positions)
        seen = None if encoded is None else encoded.mask[:, None, None, :]

        def layer(block, state, _):
            source = None if encoded is None else block.read(encoded.last.astype(self.dtype))
            memory = Memory(source=source, source_visible=seen)
            x_BLD, carry, aux, _ = block(state[0], context, state[1], memory, visible=visible, bias=bias)
            return (named(x_BLD, "residual"), carry), aux

        loop = scanned(layer, self.num_layers, unroll=self.unroll, remat=self.remat)
        x_BLD = self._embed(context)
        (x_BLD, _), aux = loop(self.block, (x_BLD, self.block.initial_carry(x_BLD, context)), None)
        return self._decoded(x_BLD, context, aux)

    def start(
        self,
        batch_size: int,
        max_length: int,
        encoded: Encoded | None = None,
        *,
        allow_batch_dependence: bool = False,
    ) -> Cache:
        """An empty cache; keys and values of the encoder's output are computed here, once.

        Args:
          batch_size: B, that of `encoded` where it is given.
          max_length: M, how many tokens will be decoded at most.
          encoded: the encoder's output, for cross-attention.
          allow_batch_dependence: whether what is decoded may depend on the other texts of the batch, see
            `moe.leakage`.

        Returns:
          A cache for `step`. `cache.reorder` makes one row into several, as beam search needs.

        Raises:
          ValueError: a size is not positive or not that of `encoded`, or `encoded` is missing or not wanted.
          DependenceError: a token would depend on later ones, or a text on others and it is not allowed.
        """
        self._check(encoded, train=False)
        if not allow_batch_dependence:
            leakage.refuse_batch(self, "decode with a cache", "allow_batch_dependence=True of `start`")
        source = mask = None
        if encoded is not None:
            mask, last_BSD = encoded.mask, encoded.last.astype(self.dtype)
            if len(mask) != batch_size:
                raise ValueError(f"batch_size is {batch_size}; allowed: that of encoded, {len(mask)}")
            read = scanned(lambda block, state, _: (state, block.read(last_BSD)), self.num_layers)
            _, source = read(self.block, (), None)
            source = caches.by_layer(source, self._layers)
        width = self.embed(jnp.zeros((1, 0), jnp.int32)).shape[-1]
        heads, width = self.block.attention.key_shape(width)
        layers = self.num_layers * (self._layers or 1)
        return caches.empty(layers, batch_size, heads, max_length, width, self.dtype, source, mask)

    def step(
        self, batch: Mapping[str, jax.Array], cache: Cache, visible: jax.Array | None = None
    ) -> tuple[Decoded, Cache]:
        """Decodes new tokens after those in the cache; without dropout.

        A mask that looks ahead, such as `masks.prefix_lm`, needs all it may look at in one call.

        Args:
          batch: as in `__call__`, with the new tokens only. Without `positions`, they count on from the valid
            tokens of their row, so texts of different length may begin in one call and go on in the next.
          cache: from `start` or `step`.
          visible: bool [B, 1, L, M], which slots each new token sees, its own among them, instead of what the
            mask says: so a row can hold several texts that begin alike. None for the mask.

        Returns:
          `Decoded` of the new tokens, and the cache with them. When the slots have run out, it is NaN.

        Raises:
          ValueError: the arrays of the batch differ in shape, or do not fit the cache.
        """
        context = read_batch(batch, train=False)
        if "positions" not in batch:
            context = context.replace(positions=caches.next_positions(cache, context.valid))
        held, slots = caches.admit(cache, context)
        if visible is None:
            visible = self._look(slots, cache, context.valid.shape[1])
        bias = None if self.bias is None else self.bias(context.positions, slots.positions)
        seen = None if cache.source is None else cache.source_mask[0, :, None, None, :]

        def layer(block, state, kept):
            own, source = kept
            memory = Memory(own=own, start=cache.start, source=source, source_visible=seen)
            x_BLD, carry, aux, own = block(state[0], context, state[1], memory, visible=visible, bias=bias)
            return (named(x_BLD, "residual"), carry), (aux, own)

        loop = scanned(layer, self.num_layers, unroll=self.unroll)
        x_BLD = self._embed(context)
        state = (x_BLD, self.block.initial_carry(x_BLD, context))
        kept = caches.by_block((cache.own, cache.source), self._layers)
        (x_BLD, _), (aux, own) = loop(self.block, state, kept)
        x_BLD = jnp.where(held.overflown, jnp.nan, x_BLD)
        return self._decoded(x_BLD, context, aux), held.replace(own=caches.by_layer(own, self._layers))

    @property
    def _layers(self) -> int | None:
        """The layers of a block with an axis for them, or None."""
        return self.block.every if isinstance(self.block, DecoderPeriod) else None

    def _check(self, encoded: Encoded | None, *, train: bool) -> None:
        if not isinstance(self.block, (DecoderBlock, DecoderPeriod)):
            raise ValueError(
                f"block is {type(self.block).__name__}; allowed: one of backbones.decoder_blocks, or "
                "backbones.periods.DecoderPeriod"
            )
        wanted = self.block.cross_attention is not None
        if wanted != (encoded is not None):
            raise ValueError(
                f"encoded is {'missing' if wanted else 'given'}; allowed: an encoder's output if and only if "
                "the block has cross_attention"
            )
        leakage.refuse_later(self, train=train)

    def _look(self, slots: Context, cache: Cache, length: int) -> jax.Array:
        """What the mask lets new tokens see of all slots."""
        visible = self.visible(slots)
        if visible.shape[2] == 1:
            return visible
        return jax.lax.dynamic_slice_in_dim(visible, cache.start, length, axis=2)

    def _embed(self, context: Context) -> jax.Array:
        x_BLD = self.embed(context.tokens).astype(self.dtype)
        if self.position is not None:
            x_BLD = self.position(x_BLD, context)
        return named(self.drop(x_BLD, deterministic=not context.train), "embedded")

    def _decoded(self, x_BLD: jax.Array, context: Context, aux: dict[str, Any]) -> Decoded:
        x_BLD = x_BLD if self.norm is None else self.final_norm(x_BLD)
        last_BLD = jnp.where(context.valid[:, :, None], x_BLD, 0)
        table = self.embed if self.output is None else self.output
        # float32, since bfloat16 would make ties of logits that a search must tell apart
        logits_BLV = named(table.attend(last_BLD.astype(jnp.float32)), "logits")
        return Decoded(logits=logits_BLV, last=last_BLD, mask=context.valid, aux=aux)
