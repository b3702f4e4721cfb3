"""The Transformer encoder: embedding, scanned blocks, final norm.

It holds no choice of its own: embedding, position, block and norm are modules passed in, as templates. A
config nests their specs:

    dict(
        name="backbones.encoder.TransformerEncoder",
        num_layers=4,
        embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=16384, width=256),
        block=dict(
            name="backbones.blocks.PreNorm",
            attention=dict(
                name="backbones.attention.SelfAttention",
                heads=4,
                rotate=dict(name="backbones.positions.rotary"),
            ),
            feed_forward=dict(name="moe.feed_forward.Dense", width=1024),
            norm=dict(name="backbones.norms.RMSNorm"),
            dropout=0.1,
        ),
        norm=dict(name="backbones.norms.RMSNorm"),
        dtype="bfloat16",
    )

Dimensions: B batch, P prefix length, L length, D model width, H heads, M length of keys, Y number of layers.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from backbones import norms
from backbones.encoded import Encoded, read_batch
from backbones.layers import scanned
from backbones.masks import Mask, padding
from moe.feed_forward import Context
from training.activations import named


class TransformerEncoder(nn.Module):
    """A stack of blocks of one kind (Vaswani et al., 2017; Devlin et al., 2019, "BERT").

    Layers are scanned: each parameter of `block` is stacked over layers on axis 0, and each layer has random
    streams of its own. Parameters are float32; the residual stream, and with it every product, is `dtype`.

    Attributes:
      embed: `tokens [B, L] -> float [B, L, D]`. One instance given to two encoders of one model
        is one table.
      block: one layer, `(x, context, carry, *, visible, bias) -> (x, carry, aux)`; see `backbones.blocks`; or
        several, `periods.Period`.
      num_layers: how many blocks.
      position: module `(x, context) -> x` after the embedding, such as `positions.LearnedPositions`; or None.
      norm: module after the last layer, its parameters under `final_norm`; None with post-norm blocks.
      visible: `context -> bool`, broadcastable to [B, H, L, M] with four axes: who sees whom; see
        `backbones.masks`.
      bias: module `(positions, positions) -> float [B or 1, H, L, M]`, made once for all layers, such as
        `relative.RelativeBias`; or None.
      dropout: rate of dropout on the embedded tokens.
      remat: what the backward pass keeps, from `backbones.remat`; None keeps everything.
      return_layers: whether `Encoded.layers` is filled.
      norm_layers: whether those have gone through `norm` too, each as if it were the last.
      unroll: how many layers are unrolled in each step of the loop; the values do not depend on it.
      dtype: "float32" or "bfloat16".
    """

    embed: nn.Module
    block: nn.Module
    num_layers: int
    position: nn.Module | None = None
    norm: nn.Module | None = norms.RMSNorm()
    visible: Mask = padding
    bias: nn.Module | None = None
    dropout: float = 0.0
    remat: Callable[..., bool] | None = None
    return_layers: bool = False
    norm_layers: bool = False
    unroll: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, batch: Mapping[str, jax.Array], *, train: bool = False, prefix: jax.Array | None = None
    ) -> Encoded:
        """Encodes a batch.

        Args:
          batch: `tokens` int [B, L], `mask` [B, L] (True or 1 where there is a token); optionally `segments`
            and `positions`, int [B, L]. Tokens under the mask are never read.
          train: whether dropout is on; it needs the stream "dropout".
          prefix: float [B, P, D], vectors put before the embedded tokens (Lester et al., 2021, "The Power of
            Scale for Parameter-Efficient Prompt Tuning"). They take positions 0 to P - 1, move the tokens'
            by P, and are part of the output.

        Returns:
          `Encoded` with `last` [B, P + L, D] in `dtype`.

        Raises:
          ValueError: num_layers or unroll is not positive, or the arrays of the batch differ in shape.
        """
        context = read_batch(batch, train)
        x_BLD = self.embed(context.tokens).astype(self.dtype)
        if prefix is not None:
            x_BLD = jnp.concatenate([prefix.astype(x_BLD.dtype), x_BLD], axis=1)
            context = prepend(context, prefix.shape[1])
        if self.position is not None:
            x_BLD = self.position(x_BLD, context)
        x_BLD = named(nn.Dropout(self.dropout)(x_BLD, deterministic=not train), "embedded")
        visible = self.visible(context)
        bias = None if self.bias is None else self.bias(context.positions, context.positions)

        def layer(block, state, _):
            x_BLD, carry, aux = block(state[0], context, state[1], visible=visible, bias=bias)
            x_BLD = named(x_BLD, "residual")
            return (x_BLD, carry), (x_BLD if self.return_layers else None, aux)

        layers = scanned(layer, self.num_layers, unroll=self.unroll, remat=self.remat)
        state = (x_BLD, self.block.initial_carry(x_BLD, context))
        (x_BLD, _), (layers_YBLD, aux) = layers(self.block, state, None)
        if self.norm is not None:
            # A copy: an instance given to the block as well would be one module, with one scale for both.
            final_norm = self.norm.clone(parent=self, name="final_norm")
            x_BLD = final_norm(x_BLD)
            if self.norm_layers and layers_YBLD is not None:
                layers_YBLD = final_norm(layers_YBLD)
        last_BLD = jnp.where(context.valid[:, :, None], x_BLD, 0)
        return Encoded(last=last_BLD, mask=context.valid, layers=layers_YBLD, aux=aux)


def prepend(context: Context, length: int) -> Context:
    """The context of a sequence with `length` vectors before it: valid, at the first positions, without a
    token or a segment (-1)."""

    def put(value, array_BL):
        before = jnp.broadcast_to(jnp.asarray(value, array_BL.dtype), (array_BL.shape[0], length))
        return jnp.concatenate([before, array_BL], axis=1)

    first = jnp.arange(length, dtype=jnp.int32)[None]
    return context.replace(
        valid=put(True, context.valid),
        tokens=put(-1, context.tokens),
        positions=put(first, context.positions + length),
        segments=None if context.segments is None else put(-1, context.segments),
    )
