"""The sparse mixture of experts as a feed-forward layer.

It holds no choice of its own: router, experts, dispatcher and shared experts are passed in. A config nests
their specs:

    dict(
        name="moe.mixture.Mixture",
        router=dict(name="moe.routers.TopK", num_experts=16, k=2),
        experts=dict(name="moe.experts.Gated", width=512),
        dispatcher=dict(name="moe.dropless.Dropless"),
        shared=dict(name="moe.feed_forward.Gated", width=512),
    )

A forward pass with `mutable=["routing"]` records who went where, as the variable `choice` of that collection
(`moe.routing.Choice`, stacked over layers by the encoder); of a layer that is called twice, as in tied
towers, the last call stays. One that is given `replayed(recorded)` among its variables goes the same way, to
the bit; its sums count only what was served.

Dimensions: B batch, L length, D model width, G groups, S tokens of a group, R edges.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe import groups, leakage
from moe.dispatch import Dispatcher
from moe.feed_forward import Aux, Carry, Context, check_no_sums, nothing_carried
from moe.sums import sums

RECORDED, REPLAYED = "routing", "replay"  # collections of variables


def replayed(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables by which a forward pass goes the way of a recorded one: what that one returned
    for `mutable=["routing"]`, in a collection of another name."""
    return {REPLAYED: recorded[RECORDED]}


class Mixture(nn.Module):
    """A token's output is the weighted sum of those of its experts, and of the shared ones.

    Shazeer et al. (2017), "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer";
    shared experts as in Dai et al. (2024), "DeepSeekMoE".

    Attributes:
      router: `(x [G, S, D], tokens, replay) -> Routing`; see `moe.routers`.
      experts: `(rows, *, train) -> rows`; see `moe.experts`.
      dispatcher: see `moe.dispatch`.
      group_rows: sequences that share a capacity, or among whose tokens an expert chooses; None for all of
        the batch.
      shared: a feed-forward layer that every token goes through, with the weight 1, or None.
    """

    router: nn.Module
    experts: nn.Module
    dispatcher: Dispatcher
    group_rows: int | None = 1
    shared: nn.Module | None = None

    initial_carry = nothing_carried

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context: Context, carry: Carry) -> tuple[jax.Array, Carry, Aux]:
        """Returns y of the shape and dtype of x, the carry as it came, and the sums of `moe.sums`.

        Raises:
          ValueError: group_rows does not divide the batch, a recorded routing is of another shape, or
            `shared` gives sums.
        """
        x_GSD, tokens = groups.group(x_BLD, context, self.group_rows)
        replay = self.get_variable(REPLAYED, "choice")
        if replay is not None and replay.num_experts != self.router.num_experts:
            raise ValueError(
                f"the recorded routing is of {replay.num_experts} experts; allowed: {self.router.num_experts}"
            )
        routing = self.router(x_GSD, tokens, replay)
        valid_GR = jnp.take_along_axis(tokens.valid, routing.token, axis=1)
        routing = routing.replace(keep=routing.keep & valid_GR)
        plan = self.dispatcher.plan(routing, train=context.train)
        if self.is_mutable_collection(RECORDED) and not self.is_initializing():
            self.put_variable(RECORDED, "choice", routing.replace(keep=plan.keep).choice)
        rows = self.experts(plan.dispatch(x_GSD), train=context.train)
        y_BLD = plan.combine(rows).reshape(x_BLD.shape)
        if self.shared is not None:
            shared_BLD, _, aux = self.shared(x_BLD, context, ())
            check_no_sums(aux, "shared")
            y_BLD = y_BLD + shared_BLD
        return y_BLD, carry, sums(routing, plan.keep, tokens, len(x_BLD))

    @nn.nowrap
    def dependence(self, train: bool) -> leakage.Dependence:
        """See `moe.leakage`."""
        of_group = leakage.stated(self.router, train) | leakage.stated(self.dispatcher, train)
        found = leakage.in_groups(of_group, self.group_rows)
        for _, dependence in leakage.of(self.shared, train=train).values():
            found |= dependence
        return found
