"""What a sparse layer reports: sums over the tokens of each sequence, from which losses and metrics are made.

All are float32 and additive, over sequences, microbatches and devices alike:

    count        [B, E]  edges that tokens or experts chose, before any capacity
    served       [B, E]  those that were served
    weight       [B, E]  their weights, before any capacity: Shazeer's importance
    tokens       [B]     tokens that are no padding
    dropped      [B]     edges that were chosen and not served
    probability  [B, E]  probabilities of the router; with a router that scores
    z            [B]     (log sum exp logits)^2; likewise
    entropy      [B]     entropy of the probabilities, nats; likewise

Gradients flow through weight, probability, z and entropy. Encoders stack them over layers, [Y, B, ...].

Dimensions: B batch, L length, G groups, S tokens of a group, R edges, K choices, E experts.
"""

import jax
import jax.numpy as jnp

from moe.groups import Tokens
from moe.routing import Routing


def sums(routing: Routing, served_GR: jax.Array, tokens: Tokens, batch: int) -> dict[str, jax.Array]:
    """Returns the sums of one layer.

    Args:
      routing: as the router gave it.
      served_GR: bool [G, R], the edges that the dispatcher served.
      tokens: of the groups.
      batch: B.
    """
    by_sequence = lambda x_GS: x_GS.reshape(batch, -1)
    valid_BL = by_sequence(tokens.valid).astype(jnp.float32)
    keep = routing.keep.astype(jnp.float32)
    served = served_GR.astype(jnp.float32)
    found = {
        "count": _by_expert(routing, keep, batch),
        "served": _by_expert(routing, served, batch),
        "weight": _by_expert(routing, jnp.where(routing.keep, routing.weight, 0.0), batch),
        "tokens": valid_BL.sum(1),
    }
    found["dropped"] = found["count"].sum(1) - found["served"].sum(1)
    if routing.logits is not None:
        probability_BLE = routing.probabilities.reshape(batch, -1, routing.num_experts)
        z_BL = by_sequence(jax.nn.logsumexp(routing.logits, axis=-1))
        # A probability that has underflowed has no gradient, where that of entropy would be infinite.
        positive_BLE = jnp.where(probability_BLE > 0, probability_BLE, 1.0)
        entropy_BL = -(positive_BLE * jnp.log(positive_BLE)).sum(-1)
        found["probability"] = jnp.einsum("ble,bl->be", probability_BLE, valid_BL)
        found["z"] = (jnp.square(z_BL) * valid_BL).sum(1)
        found["entropy"] = (entropy_BL * valid_BL).sum(1)
    return found


def _by_expert(routing: Routing, of_edge_GR: jax.Array, batch: int) -> jax.Array:
    """Adds a number of each edge up by sequence and expert, [B, E]."""
    if routing.choices:
        expert_BR, number_BR = (x.reshape(batch, -1) for x in (routing.expert, of_edge_GR))
        ours_BRE = expert_BR[:, :, None] == jnp.arange(routing.num_experts, dtype=jnp.int32)[None, None]
        return jnp.where(ours_BRE, number_BR[:, :, None], 0.0).sum(1)
    groups = len(routing.token)
    rows = batch // groups
    row_GR = routing.token // (routing.num_tokens // rows)

    def add(row_R, expert_R, number_R):
        return jnp.zeros((rows, routing.num_experts), jnp.float32).at[row_R, expert_R].add(number_R)

    return jax.vmap(add)(row_GR, routing.expert, of_edge_GR).reshape(batch, routing.num_experts)
