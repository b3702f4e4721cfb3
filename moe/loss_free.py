"""Load balancing without a loss: a bias of each expert that decides who is chosen, and nothing else.

    choose the best K of s_e + b_e,    weight_e = s_e,    b_e += rate sign(mean count - count_e)

Dimensions: G groups, S tokens of a group, D model width, E experts, K choices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.groups import Tokens
from moe.leakage import each_token_alone
from moe.routers import SMALLEST, check_k, choose, score, weigh
from moe.routing import Choice, Routing, token_choice

COLLECTION = "balance"  # of variables that no gradient trains


class LossFree(nn.Module):
    """The K experts with the largest score plus bias; the weights are the scores without it.

    Wang et al. (2024), "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts": sigmoid scores,
    not renormalized, or softmax scores. DeepSeek-AI (2024), "DeepSeek-V3 Technical Report": sigmoid scores,
    divided by their sum over the chosen and multiplied by `scaling`.

    The bias, float32 [E], is the variable "bias" of the collection "balance"; it starts from zero and
    `update` moves it once per optimizer step. The routing's probabilities are the scores divided by their sum
    over experts, as in the sequence-wise balance loss of DeepSeek-V3.

    Attributes:
      num_experts: E.
      k: K.
      activation: from logits [..., E] to scores; sigmoid or softmax.
      renormalize: whether the K weights are divided by their sum.
      scaling: what the weights are multiplied by at the end.
      limit: the groups of experts that a token may choose from; see `moe.group_limit`. None for all.
      kernel_init: of the kernel [D, E].
    """

    num_experts: int
    k: int = 2
    activation: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid
    renormalize: bool = True
    scaling: float = 1.0
    limit: Callable[[jax.Array, int], jax.Array] | None = None
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

    dependence = each_token_alone

    @nn.compact
    def __call__(self, x_GSD: jax.Array, tokens: Tokens, replay: Choice | None = None) -> Routing:
        """Returns the routing of K edges a token.

        Raises:
          ValueError: k is not between 1 and num_experts, or `limit` leaves fewer than k experts.
        """
        del tokens
        check_k(self.k, self.num_experts)
        bias_E = self.variable(COLLECTION, "bias", jnp.zeros, (self.num_experts,), jnp.float32).value
        logits_GSE = score(self.num_experts, x_GSD, self.kernel_init)
        score_GSE = self.activation(logits_GSE)
        expert_GSK, keep_GSK = choose(score_GSE + bias_E[None, None], self.k, replay, self.limit)
        return token_choice(
            expert_GSK,
            weigh(score_GSE, expert_GSK, renormalize=self.renormalize, scaling=self.scaling),
            keep_GSK,
            self.num_experts,
            logits=logits_GSE,
            probabilities=score_GSE / (score_GSE.sum(-1, keepdims=True) + SMALLEST),
        )


def update(bias: jax.Array, count: jax.Array, *, rate: float) -> jax.Array:
    """Returns the bias after one step: up by `rate` where an expert had fewer tokens than the mean, and down
    where it had more.

    Wang et al. (2024), algorithm 1; they use a rate of 0.001.

    Args:
      bias: float32 [..., E].
      count: float [..., E], tokens that chose each expert, of the whole batch of the step, before capacity.
      rate: the size of the step.

    >>> update(jnp.zeros(3), jnp.array([4.0, 2.0, 0.0]), rate=0.5).tolist()
    [-0.5, 0.0, 0.5]
    """
    # Not by the mean, which XLA rounds: an expert that is at it should stay.
    return bias + rate * jnp.sign(count.sum(-1, keepdims=True) - count.shape[-1] * count)
