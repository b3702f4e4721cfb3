"""Routing limited to a few groups of experts, such as those that lie on one device or node each.

Dimensions: G groups of tokens, S tokens of a group, E experts, N groups of experts.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class GroupLimit:
    """A token chooses among the experts of its best groups alone, a group being E / N consecutive experts.

    A group's score is the sum of its `best` largest scores. DeepSeek-AI (2024), "DeepSeek-V2: A Strong,
    Economical, and Efficient Mixture-of-Experts Language Model", device-limited routing: the largest one of
    the softmax scores. DeepSeek-AI (2024), "DeepSeek-V3 Technical Report", node-limited routing: the largest
    two (K divided by the groups of a token) of the scores with their bias.

    Attributes:
      num_groups: N.
      topk_groups: groups of a token.
      best: scores that are added up.

    Raises:
      ValueError: topk_groups is not between 1 and num_groups, or best is not positive.
    """

    num_groups: int
    topk_groups: int
    best: int = 1

    def __post_init__(self):
        if not 1 <= self.topk_groups <= self.num_groups:
            raise ValueError(
                f"topk_groups is {self.topk_groups}; allowed: 1 to num_groups, {self.num_groups}"
            )
        if self.best < 1:
            raise ValueError(f"best is {self.best}; allowed: an integer of at least 1")

    def __call__(self, score_GSE: jax.Array, k: int) -> jax.Array:
        """Returns the scores, minus infinity for experts outside of the token's groups.

        Of groups with equal scores the first is chosen.

        Raises:
          ValueError: num_groups does not divide E, a group has fewer than `best` experts, or the groups of a
            token fewer than k.
        """
        num_experts = score_GSE.shape[-1]
        if num_experts % self.num_groups:
            raise ValueError(f"num_groups is {self.num_groups}; allowed: a divisor of {num_experts} experts")
        size = num_experts // self.num_groups
        if self.best > size:
            raise ValueError(f"best is {self.best}; allowed: 1 to the {size} experts of a group")
        if k > self.topk_groups * size:
            raise ValueError(
                f"k is {k}; allowed: 1 to {self.topk_groups * size}, the experts of {self.topk_groups} groups"
            )
        score_GSNE = score_GSE.reshape(*score_GSE.shape[:-1], self.num_groups, size)
        of_group_GSN = jax.lax.top_k(score_GSNE, self.best)[0].sum(-1)
        chosen = jax.lax.top_k(of_group_GSN, self.topk_groups)[1]
        numbers = jnp.arange(self.num_groups, dtype=chosen.dtype)[None, None, None]
        mask_GSN = (chosen[..., None] == numbers).any(-2)
        return jnp.where(mask_GSN[..., None], score_GSNE, -jnp.inf).reshape(score_GSE.shape)
