"""GShard's router: the second expert of a token is left to chance.

Dimensions: G groups, S tokens of a group, D model width, E experts, K = 2 choices.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.groups import Tokens
from moe.leakage import each_token_alone
from moe.noise import per_token
from moe.routers import check_k, choose, score, weigh
from moe.routing import Choice, Routing, token_choice, token_keys


class GShard(nn.Module):
    """The two experts with the largest softmax probability, whose weights g1 and g2 are divided by their sum;
    in training the second is kept with the probability min(1, 2 g2).

    Lepikhin et al. (2021), "GShard: Scaling Giant Models with Conditional Computation and Automatic
    Sharding", algorithm 1. A second expert that is not kept takes no capacity, and g1 stays as it is.
    Elsewhere than in training every second expert is kept. First choices of all tokens go before second ones
    with the capacity's priority `moe.capacity.by_choice`.

    Attributes:
      num_experts: E.
    """

    num_experts: int

    dependence = each_token_alone

    @nn.compact
    def __call__(self, x_GSD: jax.Array, tokens: Tokens, replay: Choice | None = None) -> Routing:
        """Returns the routing of two edges a token.

        Raises:
          ValueError: there are fewer than two experts.
        """
        check_k(2, self.num_experts)
        logits_GSE = score(self.num_experts, x_GSD)
        probability_GSE = jax.nn.softmax(logits_GSE)
        expert_GSK, keep_GSK = choose(probability_GSE, 2, replay)
        weight_GSK = weigh(probability_GSE, expert_GSK, renormalize=True)
        if tokens.train and replay is None:
            chance_GS = per_token(jax.random.uniform, token_keys(self.make_rng("router"), tokens))
            second_GS = 2 * weight_GSK[..., 1] > chance_GS
            keep_GSK = jnp.stack([jnp.ones_like(second_GS), second_GS], axis=-1)
        return token_choice(
            expert_GSK,
            weight_GSK,
            keep_GSK,
            self.num_experts,
            logits=logits_GSE,
            probabilities=probability_GSE,
        )
