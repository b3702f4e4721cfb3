"""A routing: which token goes to which expert, with what weight, as a list of edges.

Every router gives one, whoever chooses: tokens their experts (R = S K edges), or experts their tokens
(R = E C). What is dropped, or chosen by nobody, is an edge with `keep=False`.

Dimensions: G groups, S tokens of a group, R edges, E experts, K choices of a token.
"""

import jax
import jax.numpy as jnp
from flax import struct

from moe.groups import Tokens


@struct.dataclass
class Choice:
    """The part of a routing that is recorded and replayed; weights are computed again.

    Attributes:
      token: int32 [G, R], a token of the group.
      expert: int32 [G, R].
      keep: bool [G, R]; where False, token and expert are valid numbers that mean nothing.
      num_experts: E.
    """

    token: jax.Array
    expert: jax.Array
    keep: jax.Array
    num_experts: int = struct.field(pytree_node=False)


@struct.dataclass
class Routing:
    """Edges from tokens to experts.

    Attributes:
      token, expert, keep: see `Choice`.
      weight: float32 [G, R], what an expert's output is multiplied by.
      logits: float32 [G, S, E] before any noise, or None where experts are looked up and not scored.
      probabilities: float32 [G, S, E], how much of a token each expert would like to have; they sum to 1
        over experts. None with `logits`.
      num_experts: E.
      num_tokens: S.
      choices: K where edge r is of token r // K, and 0 where edges come in another order.
    """

    token: jax.Array
    expert: jax.Array
    weight: jax.Array
    keep: jax.Array
    logits: jax.Array | None
    probabilities: jax.Array | None
    num_experts: int = struct.field(pytree_node=False)
    num_tokens: int = struct.field(pytree_node=False)
    choices: int = struct.field(pytree_node=False, default=0)

    @property
    def choice(self) -> Choice:
        return Choice(self.token, self.expert, self.keep, self.num_experts)

    def bare(self) -> "Routing":
        """Without logits and probabilities: the edges, which are all that a dispatcher needs."""
        return self.replace(logits=None, probabilities=None)


def token_choice(
    expert_GSK: jax.Array,
    weight_GSK: jax.Array,
    keep_GSK: jax.Array,
    num_experts: int,
    *,
    logits: jax.Array | None = None,
    probabilities: jax.Array | None = None,
) -> Routing:
    """The routing in which each token has chosen K experts.

    Args:
      expert_GSK: int32 [G, S, K].
      weight_GSK: float [G, S, K].
      keep_GSK: bool [G, S, K], or anything that broadcasts to it.
      num_experts: E.
      logits, probabilities: see `Routing`.
    """
    groups, tokens, choices = expert_GSK.shape
    flat = lambda x: jnp.broadcast_to(x, expert_GSK.shape).reshape(groups, tokens * choices)
    return Routing(
        token=flat(jnp.arange(tokens, dtype=jnp.int32)[None, :, None]),
        expert=flat(expert_GSK.astype(jnp.int32)),
        weight=flat(weight_GSK.astype(jnp.float32)),
        keep=flat(keep_GSK),
        logits=logits,
        probabilities=probabilities,
        num_experts=num_experts,
        num_tokens=tokens,
        choices=choices,
    )


def replayed_choices(replay: Choice, shape: tuple[int, int, int]) -> tuple[jax.Array, jax.Array]:
    """Returns (expert int32 [G, S, K], keep bool [G, S, K]) of the recorded routing of a token choice.

    Raises:
      ValueError: it was recorded of other groups, tokens or choices.
    """
    groups, tokens, choices = shape
    if replay.expert.shape != (groups, tokens * choices):
        raise ValueError(
            f"the recorded routing has the shape {replay.expert.shape}; allowed: "
            f"{(groups, tokens * choices)}, {tokens} tokens of {choices} choices in each group"
        )
    return replay.expert.reshape(shape), replay.keep.reshape(shape)


def token_keys(rng: jax.Array, tokens: Tokens) -> jax.Array:
    """Returns a random key for each token, [G, S].

    It is a function of the token's row and position in the batch: groups, padding and devices do not change
    it.
    """
    # In one run of numbers: XLA compiles it 8 times as fast as with two axes.
    at_row = jax.vmap(jax.random.fold_in, (None, 0))(rng, tokens.rows.ravel())
    keys = jax.vmap(jax.random.fold_in)(at_row, tokens.positions.ravel())
    return keys.reshape(tokens.rows.shape)
