"""Routers in which tokens choose: they score experts by a product with the token and take the best K.

A router is a module `(x [G, S, D], tokens, replay) -> Routing` with a field `num_experts`. Logits and
probabilities are float32 whatever the dtype of x, and the product has full precision on every device. With
`replay`, experts are those that were recorded, and the weights are computed anew. Noise and jitter are drawn
from the stream "router", only where `tokens.train` is true.

Settings of published routers; elsewhere than here: `noise`, `gshard`, `loss_free`, `expert_choice`,
`tables`; the soft mixture (`soft`) is a layer of its own.

    Shazeer et al. (2017)                       TopK(kernel_init=zeros_init(), noise=noise.Learned())
    GShard, Lepikhin et al. (2021)              gshard.GShard()
    Switch, Fedus et al. (2022)                 TopK(k=1, renormalize=False, jitter=0.01)
    V-MoE, Riquelme et al. (2021)               TopK(renormalize=False, noise=noise.Normal())
    GLaM, Du et al. (2022)                      TopK()
    Mixtral, Jiang et al. (2024)                TopK()
    DeepSeekMoE, Dai et al. (2024)              TopK(k=6, renormalize=False)
    Qwen1.5-MoE and Qwen2-MoE                   TopK(k=4, renormalize=False); k=8 in Qwen2-57B
    OLMoE, Muennighoff et al. (2024)            TopK(k=8, renormalize=False)
    DeepSeek-V2, DeepSeek-AI (2024)             TopK(k=6, renormalize=False, scaling=16,
                                                     limit=group_limit.GroupLimit(8, 3))
    Loss-free balancing, Wang et al. (2024)     loss_free.LossFree(renormalize=False)
    DeepSeek-V3, DeepSeek-AI (2024)             loss_free.LossFree(k=8, scaling=2.5,
                                                     limit=group_limit.GroupLimit(8, 4, best=2))
    Expert choice, Zhou et al. (2022)           expert_choice.ExpertChoice()
    Hash layers, Roller et al. (2021)           tables.ByToken(table=tables.random or tables.balanced)
    PanGu-Sigma, Ren et al. (2023)              tables.ByDomainAndToken()
    SkillNet, Zhang et al. (2022)               tables.ByDomain(experts=..., always=(0,))

Dimensions: G groups, S tokens of a group, D model width, E experts, K choices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.groups import Tokens
from moe.leakage import each_token_alone
from moe.noise import jittered
from moe.routing import Choice, Routing, replayed_choices, token_choice

KERNEL_INIT = nn.initializers.lecun_normal()
# Under a sum of weights, which may vanish when other parameters replay a routing. A gradient divides by its
# square, which is still a float32.
SMALLEST = 1e-18


class TopK(nn.Module):
    """The K experts with the largest softmax probability, which is their weight.

    Shazeer et al. (2017) and Lepikhin et al. (2021), "GShard", divide the weights by their sum; Fedus et al.
    (2022), "Switch Transformers", take K = 1 and do not.

    With noise, experts and weights are those of the noisy logits, while the logits and probabilities of the
    routing are without it.

    Attributes:
      num_experts: E.
      k: K.
      renormalize: whether the K weights are divided by their sum.
      scaling: what the weights are multiplied by at the end.
      jitter: e, where the input of the router is multiplied by uniform numbers of 1 - e to 1 + e.
      noise: a module `(logits, x, tokens) -> logits`; see `moe.noise`. None for no noise.
      limit: the groups of experts that a token may choose from; see `moe.group_limit`. None for all.
      kernel_init: of the kernel [D, E].
    """

    num_experts: int
    k: int = 2
    renormalize: bool = True
    scaling: float = 1.0
    jitter: float = 0.0
    noise: nn.Module | None = None
    limit: Callable[[jax.Array, int], jax.Array] | None = None
    kernel_init: Callable[..., jax.Array] = KERNEL_INIT

    dependence = each_token_alone

    @nn.compact
    def __call__(self, x_GSD: jax.Array, tokens: Tokens, replay: Choice | None = None) -> Routing:
        """Returns the routing of K edges a token.

        Raises:
          ValueError: k is not between 1 and num_experts, jitter not between 0 and 1, or `limit` leaves fewer
            than k experts.
        """
        check_k(self.k, self.num_experts)
        x_GSD = jittered(self, x_GSD.astype(jnp.float32), tokens, self.jitter)
        logits_GSE = score(self.num_experts, x_GSD, self.kernel_init)
        noisy_GSE = logits_GSE if self.noise is None else self.noise(logits_GSE, x_GSD, tokens)
        score_GSE = jax.nn.softmax(noisy_GSE)
        expert_GSK, keep_GSK = choose(score_GSE, self.k, replay, self.limit)
        return token_choice(
            expert_GSK,
            weigh(score_GSE, expert_GSK, renormalize=self.renormalize, scaling=self.scaling),
            keep_GSK,
            self.num_experts,
            logits=logits_GSE,
            probabilities=jax.nn.softmax(logits_GSE),
        )


def score(
    num_experts: int, x_GSD: jax.Array, kernel_init: Callable[..., jax.Array] = KERNEL_INIT
) -> jax.Array:
    """Logits float32 [G, S, E]: x times a kernel [D, E] under "score"; called inside `nn.compact`."""
    product = nn.Dense(
        num_experts,
        use_bias=False,
        dtype=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
        kernel_init=kernel_init,
        name="score",
    )
    return product(x_GSD.astype(jnp.float32))


def choose(
    score_GSE: jax.Array,
    k: int,
    replay: Choice | None,
    limit: Callable[[jax.Array, int], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns (expert int32 [G, S, K], keep bool that broadcasts to it): the best K, or those recorded.

    Of experts with equal scores the first is chosen.
    """
    if replay is not None:
        return replayed_choices(replay, (*score_GSE.shape[:2], k))
    if limit is not None:
        score_GSE = limit(score_GSE, k)
    return jax.lax.top_k(score_GSE, k)[1], jnp.ones((1, 1, 1), bool)


def weigh(
    score_GSE: jax.Array, expert_GSK: jax.Array, *, renormalize: bool, scaling: float = 1.0
) -> jax.Array:
    """Returns the scores of chosen experts [G, S, K], divided by their sum if asked, times `scaling`."""
    weight_GSK = jnp.take_along_axis(score_GSE, expert_GSK, axis=-1)
    if renormalize:
        weight_GSK = weight_GSK / (weight_GSK.sum(-1, keepdims=True) + SMALLEST)
    return weight_GSK * scaling


def check_k(k: int, num_experts: int) -> None:
    """Raises ValueError unless K is between 1 and E."""
    if not 1 <= k <= num_experts:
        raise ValueError(f"k is {k}; allowed: 1 to num_experts, {num_experts}")
