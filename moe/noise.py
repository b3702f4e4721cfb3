"""Noise of routers: it lets a token try experts that it would not choose.

Every number is drawn with a key of its token (`moe.routing.token_keys`), so that neither the number of
devices, nor the padded length, nor the size of a group changes the noise of a token.

Dimensions: G groups, S tokens of a group, D model width, E experts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.groups import Tokens
from moe.routing import token_keys


class Learned(nn.Module):
    """Normal noise whose standard deviation is learned for each token and expert: softplus(x W), with
    W [D, E], which starts from zero.

    Shazeer et al. (2017), "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
    equation 4. They start the kernel of the router from zero as well.
    """

    @nn.compact
    def __call__(self, logits_GSE: jax.Array, x_GSD: jax.Array, tokens: Tokens) -> jax.Array:
        """Returns noisy logits, float32 [G, S, E]; the logits themselves where nothing is trained."""
        product = nn.Dense(
            logits_GSE.shape[-1],
            use_bias=False,
            dtype=jnp.float32,
            precision=jax.lax.Precision.HIGHEST,
            kernel_init=nn.initializers.zeros_init(),
            name="scale",
        )
        scale_GSE = jax.nn.softplus(product(x_GSD.astype(jnp.float32)))
        if not tokens.train:
            return logits_GSE
        return logits_GSE + scale_GSE * _normal(self.make_rng("router"), tokens, logits_GSE.shape[-1])


class Normal(nn.Module):
    """Normal noise with the standard deviation scale / E.

    Riquelme et al. (2021), "Scaling Vision with Sparse Mixture of Experts", with scale 1.

    Attributes:
      scale: the standard deviation times the number of experts.
    """

    scale: float = 1.0

    @nn.compact
    def __call__(self, logits_GSE: jax.Array, x_GSD: jax.Array, tokens: Tokens) -> jax.Array:
        """Returns noisy logits, float32 [G, S, E]; the logits themselves where nothing is trained."""
        del x_GSD
        if not tokens.train:
            return logits_GSE
        num_experts = logits_GSE.shape[-1]
        noise_GSE = _normal(self.make_rng("router"), tokens, num_experts)
        return logits_GSE + self.scale / num_experts * noise_GSE


def jittered(module: nn.Module, x_GSD: jax.Array, tokens: Tokens, amount: float) -> jax.Array:
    """Returns x times uniform numbers of 1 - amount to 1 + amount; x itself where nothing is trained.

    The input jitter of Fedus et al. (2022), "Switch Transformers". What experts get is not jittered.

    Args:
      module: the router, whose stream "router" is drawn from.
      x_GSD: float [G, S, D].
      tokens: of the groups.
      amount: 0 for none.

    Raises:
      ValueError: amount is not between 0 and 1.
    """
    if not 0 <= amount < 1:
        raise ValueError(f"jitter is {amount}; allowed: at least 0 and below 1")
    if not tokens.train or amount == 0:
        return x_GSD
    keys_GS = token_keys(module.make_rng("router"), tokens)
    low, high, shape = 1 - amount, 1 + amount, (x_GSD.shape[-1],)
    return x_GSD * per_token(lambda key: jax.random.uniform(key, shape, x_GSD.dtype, low, high), keys_GS)


def per_token(draw: Callable[[jax.Array], jax.Array], keys_GS: jax.Array) -> jax.Array:
    """Returns what `draw` makes of each token's key, [G, S, ...]."""
    return jax.vmap(jax.vmap(draw))(keys_GS)


def _normal(rng: jax.Array, tokens: Tokens, num_experts: int) -> jax.Array:
    return per_token(lambda key: jax.random.normal(key, (num_experts,)), token_keys(rng, tokens))
