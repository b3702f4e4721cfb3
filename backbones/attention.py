"""Multi-head attention (Vaswani et al., 2017, "Attention Is All You Need").

`attend` is the arithmetic; modules make queries, keys and values and say what is visible. Heads stand beside
the batch [B, H, L, d], so that both products are plain batched matrix products: on a CPU this is several
times faster than `einsum("blhd,bmhd->bhlm")`. The two axes stay apart, so that a mesh can split both. For
speed too the weights are normalized after they have been applied to the values: that pass is over [L, d],
not [L, M].

Dimensions: B batch, L length of queries, M length of keys, D model width, H heads, G heads of keys and
values, R = H / G, d width of a head.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.feed_forward import Context, project
from training.activations import named

# Added to hidden scores. Any finite score vanishes beside it; the floor keeps rows where all is
# hidden at zero.
HIDDEN = -1e30
FLOOR = -1e29


def attend(
    q_BHLd: jax.Array,
    k_BGMd: jax.Array,
    v_BGMd: jax.Array,
    *,
    visible: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    drop: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> jax.Array:
    """softmax(scale q k^T + bias) v over the visible keys.

    Args:
      q_BHLd: queries.
      k_BGMd: keys; each head of theirs serves R heads of queries that stand together.
      v_BGMd: values, likewise.
      visible: bool, broadcastable to [B, H, L, M] with four axes; None shows everything.
      bias: float32, likewise; added to the scaled scores.
      scale: of the scores; None is 1 / sqrt(d).
      drop: applied to the weights [B, H, L, M] before the values, for dropout.

    Returns:
      [B, H, L, d] in the dtype of the queries; scores and softmax are float32. A query that sees no key gets
      zeros, and passes no gradient.
    """
    each = ((0, 1), (0, 1))
    batch, heads, length, width = q_BHLd.shape
    groups = k_BGMd.shape[1]
    # The queries of one head of keys stand in one axis: its keys are read once, and never copied.
    q_BGRLd = q_BHLd.reshape(batch, groups, heads // groups * length, width)
    scores = jax.lax.dot_general(q_BGRLd, k_BGMd, (((3,), (3,)), each), preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, length, -1) * (width**-0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if visible is not None:
        scores = scores + jnp.where(visible, 0.0, HIDDEN)
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), FLOOR))
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights_BGRLM = drop(weights).astype(v_BGMd.dtype).reshape(*q_BGRLd.shape[:3], -1)
    mixed = jax.lax.dot_general(
        weights_BGRLM, v_BGMd, (((3,), (2,)), each), preferred_element_type=jnp.float32
    ).reshape(batch, heads, length, -1)
    mixed = mixed / jnp.where(total == 0, 1.0, total)
    return mixed.astype(q_BHLd.dtype)


def split_heads(x_BLD: jax.Array, heads: int) -> jax.Array:
    """[B, L, H*d] to [B, H, L, d]."""
    batch, length, width = x_BLD.shape
    return x_BLD.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def merge_heads(x_BHLd: jax.Array) -> jax.Array:
    """[B, H, L, d] to [B, L, H*d]."""
    batch, heads, length, width = x_BHLd.shape
    return x_BHLd.transpose(0, 2, 1, 3).reshape(batch, length, heads * width)


def key_shape(
    width: int, heads: int, key_value_heads: int | None = None, head_width: int | None = None
) -> tuple[int, int]:
    """(G, d) of an attention layer over a model width of D, from its fields.

    Raises:
      ValueError: heads does not divide D and there is no head_width, or key_value_heads does not divide
        heads.
    """
    if heads < 1 or (head_width is None and width % heads):
        raise ValueError(f"heads is {heads}; allowed: a divisor of the model width {width}")
    if head_width is not None and head_width < 1:
        raise ValueError(f"head_width is {head_width}; allowed: an integer of at least 1")
    groups = heads if key_value_heads is None else key_value_heads
    if groups < 1 or heads % groups:
        raise ValueError(f"key_value_heads is {groups}; allowed: a divisor of heads, {heads}")
    return groups, width // heads if head_width is None else head_width


class SelfAttention(nn.Module):
    """Multi-head self-attention; kernels `query` [D, H*d], `key` and `value` [D, G*d], `out` [H*d, D],
    truncated normal with variance 1 / fan-in.

    Attributes:
      heads: H; must divide D, unless there is `head_width`.
      rotate: `(x [B, H, L, d], positions [B or 1, L]) -> x`, applied to queries and keys, such as
        `positions.rotary`; None leaves them as they are.
      use_bias: whether the four products have a bias.
      dropout: rate of dropout on the attention weights.
      key_value_heads: G, a divisor of H: Ainslie et al. (2023), "GQA: Training Generalized Multi-Query
        Transformer Models from Multi-Head Checkpoints"; None is H.
      head_width: d; None is D / H.
      head_norm: norm over d of each head's queries and keys before they are rotated, a template that is
        copied into `query_norm` and `key_norm` (Henry et al., 2020, "Query-Key Normalization for
        Transformers", with another norm); or None.
      scale: of the scores; None is 1 / sqrt(d).
      out_bias: whether the last product has a bias; None is `use_bias`.
      prefix: puts learned keys and values before those of the text, a `prefix.Prefix`; or None.
    """

    heads: int
    rotate: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    use_bias: bool = False
    dropout: float = 0.0
    key_value_heads: int | None = None
    head_width: int | None = None
    head_norm: nn.Module | None = None
    scale: float | None = None
    out_bias: bool | None = None
    prefix: nn.Module | None = None

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        *,
        visible: jax.Array | None = None,
        bias: jax.Array | None = None,
        rotate: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """Returns [B, L, D] in the dtype of x; `visible` and `bias` as in `attend`, `rotate` in place of the
        field where a layer differs from others.

        Raises:
          ValueError: see `key_shape`.
        """
        groups, width = key_shape(x_BLD.shape[-1], self.heads, self.key_value_heads, self.head_width)
        q, k, v = (
            named(split_heads(project(heads * width, x_BLD, self.use_bias, name), heads), "heads")
            for name, heads in (("query", self.heads), ("key", groups), ("value", groups))
        )
        if self.head_norm is not None:
            q = self.head_norm.clone(parent=self, name="query_norm")(q)
            k = self.head_norm.clone(parent=self, name="key_norm")(k)
        rotate = self.rotate if rotate is None else rotate
        if rotate is not None:
            q, k = rotate(q, context.positions), rotate(k, context.positions)
        if self.prefix is not None:
            k, v, visible, bias = self.prefix(k, v, context, visible=visible, bias=bias)
        dropout = nn.Dropout(self.dropout, deterministic=not context.train)
        mixed_BHLd = attend(q, k, v, visible=visible, bias=bias, scale=self.scale, drop=dropout)
        out_bias = self.use_bias if self.out_bias is None else self.out_bias
        return project(x_BLD.shape[-1], merge_heads(mixed_BHLd), out_bias, "out")
