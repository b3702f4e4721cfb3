"""Learned keys and values before those of the text, in every layer: deep prompts.

Li and Liang (2021), "Prefix-Tuning: Optimizing Continuous Prompts for Generation"; Liu et al. (2022),
"P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks", of whose
two forms this is the one without a network that makes the prompts. They take no positions, and every token
sees them.

Dimensions: B batch, L length of queries, M length of keys, P length of the prefix, G heads of keys and
values, d width of a head, X domains.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from backbones.attention import SelfAttention
from moe.feed_forward import Context


class Prefix(nn.Module):
    """Keys and values [X, P, G, d], for the field `prefix` of `attention.SelfAttention`.

    Keys are as those of the text are after they have been rotated. All begin from a normal distribution of
    standard deviation 0.02, which the papers leave open.

    Attributes:
      length: P.
      domains: X; each domain of `Context.domains`, such as queries and documents, has its own. With 1, all
        texts have the same.
    """

    length: int
    domains: int = 1

    @nn.compact
    def __call__(
        self,
        k_BGMd: jax.Array,
        v_BGMd: jax.Array,
        context: Context,
        *,
        visible: jax.Array | None,
        bias: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
        """Returns keys and values [B, G, P + M, d], and what was visible and added to scores with P more
        keys, which all see, with nothing added.

        Raises:
          ValueError: length or domains below 1, or several domains where the batch says none.
        """
        for field in ("length", "domains"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; allowed: an integer of at least 1")
        batch, groups, _, width = k_BGMd.shape
        shape = (self.domains, self.length, groups, width)
        of_text_B = jnp.zeros(batch, jnp.int32)
        if self.domains > 1:
            if context.domains is None:
                raise ValueError(
                    f"domains is {self.domains} and the batch has no 'domains'; allowed: int [B]"
                )
            of_text_B = context.domains

        def put(name: str, x_BGMd: jax.Array) -> jax.Array:
            learned_XPGd = self.param(name, nn.initializers.normal(0.02), shape, jnp.float32)
            before_BGPd = learned_XPGd[of_text_B].transpose(0, 2, 1, 3).astype(x_BGMd.dtype)
            return jnp.concatenate([before_BGPd, x_BGMd], axis=2)

        def widened(array: jax.Array | None, fill: Any) -> jax.Array | None:
            if array is None:
                return None
            more = jnp.full((*array.shape[:3], self.length), fill, array.dtype)
            return jnp.concatenate([more, array], axis=3)

        return put("keys", k_BGMd), put("values", v_BGMd), widened(visible, True), widened(bias, 0)


def prefixed(encoder: nn.Module, *, length: int, domains: int = 1) -> nn.Module:
    """Returns an encoder with a `Prefix` in each of its self-attention layers; its other parameters keep
    their paths.

    Raises:
      ValueError: it has no `attention.SelfAttention`.
    """
    found = _with_prefix(encoder, Prefix(length, domains))
    if found is encoder:
        raise ValueError(
            f"{type(encoder).__name__} has no attention.SelfAttention; allowed: an encoder with it"
        )
    return found


def _with_prefix(part: Any, prefix: Prefix) -> Any:
    if isinstance(part, SelfAttention):
        return part.clone(prefix=prefix)
    if isinstance(part, tuple):
        changed = tuple(_with_prefix(item, prefix) for item in part)
        return part if all(a is b for a, b in zip(part, changed, strict=True)) else changed
    if not isinstance(part, nn.Module):
        return part
    held = {
        field.name: getattr(part, field.name)
        for field in dataclasses.fields(part)
        if field.name not in ("parent", "name")
    }
    changes = {name: new for name, value in held.items() if (new := _with_prefix(value, prefix)) is not value}
    return part.clone(**changes) if changes else part
