"""Poolers that are trained: modules `Encoded -> float32 [B, D]`, in the place of the functions of `poolers`.

    pooler=dict(name="dual_encoder.attention_poolers.AllLayers", latents=16, heads=2,
                of_layer=dict(name="dual_encoder.poolers.mean"))

A text without tokens becomes the zero vector. Letters: B batch, L length, D width, R latents, Y layers, M
keys, H heads, d width of a head.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from backbones import norms
from backbones.attention import attend, key_shape, merge_heads, split_heads
from backbones.encoded import Encoded
from dual_encoder import poolers
from moe.feed_forward import Context, Gated, project


class CrossAttention(nn.Module):
    """A block in which one sequence looks at another, as both papers of this file have it in their code: both
    are normalized, what is seen is added to what looks, and so is a GEGLU layer of width 4 D.

    Attributes:
      heads: H.
      head_width: d; None is D / H.
    """

    heads: int
    head_width: int | None = None

    @nn.compact
    def __call__(self, x_BLD: jax.Array, y_BMD: jax.Array, visible: jax.Array | None = None) -> jax.Array:
        """Returns [B, L, D]; the B of x or y may be 1, for one that is the same for all. `visible` as in
        `backbones.attention.attend`."""
        width = x_BLD.shape[-1]
        _, head = key_shape(width, self.heads, head_width=self.head_width)
        batch = max(len(x_BLD), len(y_BMD))
        looking, seen = norms.LayerNorm(name="norm")(x_BLD), norms.LayerNorm(name="seen_norm")(y_BMD)
        q, k, v = (
            split_heads(project(self.heads * head, side, False, name), self.heads)
            for name, side in (("query", looking), ("key", seen), ("value", seen))
        )
        q, k, v = (jnp.broadcast_to(part, (batch, *part.shape[1:])) for part in (q, k, v))
        mixed_BLD = merge_heads(attend(q, k, v, visible=visible))
        x_BLD = x_BLD + project(width, mixed_BLD, False, "out")
        anywhere = Context(valid=jnp.ones(x_BLD.shape[:2], bool))
        feed_forward = Gated(4 * width, activation=nn.gelu, use_bias=True, name="feed_forward")
        y_BLD, _, _ = feed_forward(norms.LayerNorm(name="feed_forward_norm")(x_BLD), anywhere, ())
        return x_BLD + y_BLD


class LastLayer(nn.Module):
    """Trained latents look at the tokens of the last layer, and their mean is the vector: the trainable
    last-layer pooling of Tang and Yang (2024), "Pooling And Attention: What Are Effective Designs For
    LLM-Based Embedding Models?" (768 latents, 32 heads of 2,048, D = 4,096).

    As their code does, the latents are added to what they see, and begin from a normal distribution of
    variance 1. Their code lets the latents see padding; here it is hidden.

    Attributes:
      latents: R.
      heads: H.
      head_width: d; None is D / H.
    """

    latents: int
    heads: int
    head_width: int | None = None

    @nn.compact
    def __call__(self, encoded: Encoded) -> jax.Array:
        seen_BLD = jnp.where(encoded.mask[:, :, None], encoded.last.astype(jnp.float32), 0)
        x_BD = self._looked_up(seen_BLD, encoded.mask[:, None, None, :])
        return poolers.empty_to_zero(x_BD, encoded.mask)

    def _looked_up(self, seen_BMD: jax.Array, visible: jax.Array | None) -> jax.Array:
        latents_1RD = _latents(self, seen_BMD.shape[-1])[None]
        block = CrossAttention(self.heads, self.head_width, name="block")
        return block(latents_1RD, seen_BMD, visible).mean(axis=1)


class AllLayers(LastLayer):
    """Trained latents look at one vector of each layer, and their mean is the text's: the multi-layers
    trainable pooling of Tang and Yang (2024).

    To the vector of layer y a trained vector of y is added first. The layers are those of `Encoded.layers`:
    each one's output before the final norm, the embedding not among them. Fields as in `LastLayer`, and:

    Attributes:
      of_layer: a function of `poolers`, by which a layer's tokens become one vector; the paper has `last`
        under a causal mask, and `mean` under a bidirectional one.
    """

    of_layer: Callable[[Encoded], jax.Array] = poolers.mean

    @nn.compact
    def __call__(self, encoded: Encoded) -> jax.Array:
        """Raises ValueError where the encoder returns no layers."""
        if encoded.layers is None:
            raise ValueError(
                "AllLayers needs every layer's output; allowed: an encoder with return_layers=True"
            )
        pooled_YBD = jax.vmap(lambda x_BLD: self.of_layer(Encoded(x_BLD, encoded.mask)))(encoded.layers)
        layer_YD = self.param("layer", nn.initializers.normal(1.0), pooled_YBD.shape[::2], jnp.float32)
        x_BD = self._looked_up(jnp.moveaxis(pooled_YBD, 0, 1) + layer_YD[None], None)
        return poolers.empty_to_zero(x_BD, encoded.mask)


class LatentAttention(nn.Module):
    """Tokens look at a trained dictionary of latents, go through an MLP, and are averaged (Lee et al., 2025,
    "NV-Embed: Improved Techniques for Training LLMs as Generalist Embedding Models"; 512 latents, 8 heads).

    The paper has softmax(Q K^T) V, then an MLP with GELU, then the mean. Its published model, which this
    follows, normalizes both sides, projects queries, keys and values, adds each result to its input, and has
    GEGLU. It has heads as wide as D; here d is a field. Tokens of an instruction are left out of the mean
    with `unpooled` of `towers.Tower`.

    Attributes:
      latents: R.
      heads: H.
      head_width: d; None is D / H.
    """

    latents: int
    heads: int
    head_width: int | None = None

    @nn.compact
    def __call__(self, encoded: Encoded) -> jax.Array:
        x_BLD = jnp.where(encoded.mask[:, :, None], encoded.last.astype(jnp.float32), 0)
        block = CrossAttention(self.heads, self.head_width, name="block")
        return poolers.mean(encoded.replace(last=block(x_BLD, _latents(self, x_BLD.shape[-1])[None])))


def _latents(module: nn.Module, width: int) -> jax.Array:
    if module.latents < 1:
        raise ValueError(f"latents is {module.latents}; allowed: an integer of at least 1")
    return module.param("latents", nn.initializers.normal(1.0), (module.latents, width), jnp.float32)
