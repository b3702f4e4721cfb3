"""Routers that score experts by a product with the token and take the best K.

A router is a module `(x [G, S, D], tokens, replay) -> Routing` with a field `num_experts`. Logits and
probabilities are float32 whatever the dtype of x, and the product has full precision on every device. With
`replay`, experts are those that were recorded, and the weights are computed anew.

Dimensions: G groups, S tokens of a group, D model width, E experts, K choices.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.groups import Tokens
from moe.routing import Choice, Routing, replayed_choices, token_choice


class TopK(nn.Module):
    """The K experts with the largest softmax probability, which is their weight.

    Shazeer et al. (2017) and Lepikhin et al. (2021), "GShard", divide the weights by their sum; Fedus et al.
    (2022), "Switch Transformers", take K = 1 and do not.

    Attributes:
      num_experts: E.
      k: K.
      renormalize: whether the K weights are divided by their sum.
    """

    num_experts: int
    k: int = 2
    renormalize: bool = True

    @nn.compact
    def __call__(self, x_GSD: jax.Array, tokens: Tokens, replay: Choice | None = None) -> Routing:
        """Returns the routing of K edges a token.

        Raises:
          ValueError: k is not between 1 and num_experts.
        """
        check_k(self.k, self.num_experts)
        logits_GSE = score(self.num_experts, x_GSD)
        probability_GSE = jax.nn.softmax(logits_GSE)
        if replay is None:
            expert_GSK, keep_GSK = jax.lax.top_k(probability_GSE, self.k)[1], jnp.ones((1, 1, 1), bool)
        else:
            expert_GSK, keep_GSK = replayed_choices(replay, x_GSD.shape[1])
        weight_GSK = jnp.take_along_axis(probability_GSE, expert_GSK, axis=-1)
        if self.renormalize:
            weight_GSK = weight_GSK / weight_GSK.sum(-1, keepdims=True)
        return token_choice(
            expert_GSK,
            weight_GSK,
            keep_GSK,
            self.num_experts,
            logits=logits_GSE,
            probabilities=probability_GSE,
        )


def score(num_experts: int, x_GSD: jax.Array) -> jax.Array:
    """Logits float32 [G, S, E]: x times a kernel [D, E] under "score"; called inside `nn.compact`."""
    product = nn.Dense(
        num_experts, use_bias=False, dtype=jnp.float32, precision=jax.lax.Precision.HIGHEST, name="score"
    )
    return product(x_GSD.astype(jnp.float32))


def check_k(k: int, num_experts: int) -> None:
    """Raises ValueError unless K is between 1 and E."""
    if not 1 <= k <= num_experts:
        raise ValueError(f"k is {k}; allowed: 1 to num_experts, {num_experts}")
