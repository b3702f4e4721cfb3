"""Expert choice: every expert takes the tokens of a group that score best with it.

What a token gets depends on the other tokens of its group, later ones too, and strangers where a group is
several sequences.

Dimensions: G groups, S tokens of a group, D model width, E experts, C capacity, R = E C edges.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.capacity import whole_slots
from moe.groups import Tokens
from moe.leakage import GROUP, Dependence
from moe.noise import per_token
from moe.routers import score
from moe.routing import Choice, Routing, token_keys

Keys = Callable[[], jax.Array]


def by_position(score_GES: jax.Array, slots: int, keys: Keys) -> jax.Array:
    """Of tokens with equal scores, those that come first in the group. Int32 [G, E, C]."""
    del keys
    return jax.lax.top_k(score_GES, slots)[1]


def at_random(score_GES: jax.Array, slots: int, keys: Keys) -> jax.Array:
    """Of tokens with equal scores, any, drawn for each token and expert. Int32 [G, E, C].

    Yona et al. (2024), "Stealing User Prompts from Mixture of Experts", read another's prompt from who of two
    equal tokens was served. It needs the stream "router" in evaluation too.
    """
    bits_GSE = per_token(lambda key: jax.random.bits(key, (score_GES.shape[1],)), keys())
    numbers = jnp.arange(score_GES.shape[2], dtype=jnp.int32)[None, None]
    operands = (-score_GES, bits_GSE.swapaxes(1, 2), jnp.broadcast_to(numbers, score_GES.shape))
    return jax.lax.sort(operands, num_keys=2, is_stable=True)[-1][..., :slots]


class ExpertChoice(nn.Module):
    """Each expert takes the C = ceil(factor tokens / E) tokens of the group with the largest probability, a
    softmax over experts, which is their weight.

    Zhou et al. (2022), "Mixture-of-Experts with Expert Choice Routing", with a group of the whole batch.
    Padding is never chosen; where there are fewer tokens than places, places stay empty.

    Attributes:
      num_experts: E.
      tokens: tokens of a group that there is room for, a config value and not the padded length.
      factor: experts that a token has on average in a full group.
      evaluation_factor: the factor where nothing is trained; None for the same.
      tie: who is chosen of tokens with equal scores: `by_position` or `at_random`.
      kernel_init: of the kernel [D, E].
    """

    num_experts: int
    tokens: int
    factor: float = 2.0
    evaluation_factor: float | None = None
    tie: Callable[[jax.Array, int, Keys], jax.Array] = by_position
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

    @nn.nowrap
    def dependence(self, train: bool) -> Dependence:
        """See `moe.leakage`: whoever scores better takes a token's place."""
        del train
        return GROUP

    @nn.compact
    def __call__(self, x_GSD: jax.Array, tokens: Tokens, replay: Choice | None = None) -> Routing:
        """Returns the routing of C edges an expert, expert by expert.

        Raises:
          ValueError: a factor or `tokens` is not positive, or ties are left to chance without a stream.
        """
        logits_GSE = score(self.num_experts, x_GSD, self.kernel_init)
        probability_GSE = jax.nn.softmax(logits_GSE)
        groups, size, _ = probability_GSE.shape
        if replay is None:
            slots = self._slots(size, tokens.train)
            # A probability is at least 0, so padding comes last.
            score_GSE = jnp.where(tokens.valid[:, :, None], probability_GSE, -1.0)
            keys = lambda: token_keys(self._rng(), tokens)
            token_GEC = self.tie(score_GSE.swapaxes(1, 2), slots, keys)
            token_GR = token_GEC.reshape(groups, -1).astype(jnp.int32)
            expert_R = jnp.repeat(jnp.arange(self.num_experts, dtype=jnp.int32), slots)
            expert_GR = jnp.broadcast_to(expert_R[None], token_GR.shape)
            keep_GR = jnp.take_along_axis(tokens.valid, token_GR, axis=1)
        else:
            self._check(replay, groups, size)
            token_GR, expert_GR, keep_GR = replay.token, replay.expert, replay.keep
        flat = probability_GSE.reshape(groups, -1)
        return Routing(
            token=token_GR,
            expert=expert_GR,
            weight=jnp.take_along_axis(flat, token_GR * self.num_experts + expert_GR, axis=1),
            keep=keep_GR,
            logits=logits_GSE,
            probabilities=probability_GSE,
            num_experts=self.num_experts,
            num_tokens=size,
        )

    @nn.nowrap
    def _slots(self, size: int, train: bool) -> int:
        """C, at most the S tokens of the group."""
        for field in ("factor", "tokens", "evaluation_factor"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"{field} is {value}; allowed: a positive number")
        factor = self.factor if train or self.evaluation_factor is None else self.evaluation_factor
        return whole_slots(factor * self.tokens / self.num_experts, size)

    @nn.nowrap
    def _check(self, replay: Choice, groups: int, size: int) -> None:
        """Raises ValueError unless a recording has as many groups, and for each expert tokens of one."""
        recorded, routes = replay.token.shape
        if recorded != groups or routes % self.num_experts or routes > size * self.num_experts:
            raise ValueError(
                f"the recorded routing has the shape {replay.token.shape}; allowed: {groups} groups, and for "
                f"each of {self.num_experts} experts as many edges, at most {size}"
            )

    @nn.nowrap
    def _rng(self) -> jax.Array:
        if not self.has_rng("router") and not self.is_initializing():
            raise ValueError("tie is random and there is no stream 'router'; allowed: rngs={'router': key}")
        return self.make_rng("router")
