"""What a Task does with the sums of its sparse layers: weighted losses, metrics, and the routers' state.

    auxiliary = dict(
        name="moe.auxiliary.Auxiliary",
        losses=dict(
            balance=dict(name="moe.balance.load_balancing"),
            z=dict(name="moe.balance.router_z"),
        ),
        weights=dict(balance=0.01, z=0.001),
    )

A Task has the sums of its encoders by place: where an encoder's variables lie in those of the model, "" for
a model that is one encoder, "query" and "document" for two. To the sums of `moe.sums`, each [Y, B, ...], it
may add `domains`, int32 [B], for the losses that ask for it.

Dimensions: Y layers, B rows, M microbatches, E experts.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from moe.balance import Sums, of
from moe.loss_free import COLLECTION
from training import paths
from training.task import ACCUMULATIONS, RUNNING, TWO_PASS, Metrics, Others


@dataclasses.dataclass(frozen=True)
class Auxiliary:
    """Losses on the sums of sparse layers.

    Attributes:
      losses: by name, functions of `moe.balance` that wait for sums. Each is logged as `moe/<name>`, without
        its weight, as the mean over encoders.
      weights: by the same names, what each is multiplied by in the training loss.
      bias_update: `(bias [Y, E], count [Y, E]) -> bias`, such as `moe.loss_free.update`, for routers with a
        bias that no gradient trains; None where routers have none.
      accumulation: what the losses of a microbatch take in, where a batch is computed as several.
        "alone": its own sums.
        "running": of the counts those of the microbatches before it as well, the buffer of Qiu et al. (2025);
        it changes `load_balancing` and `device_load_balancing`, which are of the whole batch.
        "two_pass": the whole batch. A forward pass over all microbatches comes first, with the same random
        keys; losses and gradients are those of the batch in one piece, for a third more computation.

    Raises:
      ValueError: weights and losses have different names, a loss is no function, or accumulation is none of
        these.
    """

    losses: Mapping[str, Callable[[Sums], jax.Array]]
    weights: Mapping[str, float]
    bias_update: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    accumulation: str = RUNNING

    def __post_init__(self):
        if self.losses.keys() != self.weights.keys():
            raise ValueError(
                f"weights has {', '.join(self.weights) or 'nothing'}; allowed: one for each of losses, "
                f"{', '.join(self.losses) or 'none'}"
            )
        for name, loss in self.losses.items():
            if not callable(loss):
                raise ValueError(
                    f"losses[{name!r}] is {loss!r}; allowed: a function such as moe.balance.load_balancing"
                )
        if self.accumulation not in ACCUMULATIONS:
            raise ValueError(
                f"accumulation is {self.accumulation!r}; allowed: {', '.join(map(repr, ACCUMULATIONS))}"
            )

    def loss(self, sums: Mapping[str, Sums], others: Others | None = None) -> tuple[jax.Array, Metrics]:
        """Returns what is added to the loss, and metrics.

        Metrics are scalars: each loss, `moe/dropped` (the share of edges that were not served),
        `moe/load_max` (the largest load of an expert over the mean one, 1 at perfect balance, in the worst
        layer), `moe/entropy` of a token's probabilities in nats, where routers have some; and "sums", which
        `update_state` is given, and a later microbatch.

        Args:
          sums: by place, see the module.
          others: of the other microbatches of the step; None where the batch is in one piece.

        Raises:
          ValueError: no place, a loss asks for sums that the layers do not give.
        """
        if not sums:
            raise ValueError("sums is empty; allowed: those of at least one encoder with sparse layers")
        seen = sums if others is None else {place: self._seen(place, sums[place], others) for place in sums}
        total, metrics = jnp.float32(0), {}
        for name, loss in self.losses.items():
            value = sum(loss(of_place) for of_place in seen.values()) / len(seen)
            metrics[f"moe/{name}"] = value
            total = total + self.weights[name] * value
        return total, {**metrics, **_measures(sums), "sums": _additive(sums)}

    def update_state(self, state: Any, sums: Mapping[str, Sums]) -> Any:
        """Returns the Task's state after an optimizer step: each router's bias moved by the counts of its
        layer.

        Args:
          state: variable collections of the model, `balance` among them where routers have a bias.
          sums: by place, with `count` [Y, B, E]: "sums" of the metrics, added up over microbatches.

        Raises:
          ValueError: there is a bias and no `bias_update`, or the other way round; or a place does not have
            one bias [Y, E].
        """
        found = {place: _biases(state, place) for place in sums}
        biased = any(found.values())
        if biased != (self.bias_update is not None):
            raise ValueError(
                "bias_update is None, but the routers have a bias; allowed: such as moe.loss_free.update"
                if biased
                else f"bias_update is {self.bias_update!r}, but no router has a bias; allowed: None"
            )
        new = {}
        for place, biases in found.items():
            count_YE = sums[place]["count"].sum(1)
            for path, bias in biases.items():
                if len(biases) > 1 or bias.shape != count_YE.shape:
                    raise ValueError(
                        f"{', '.join(biases)} {bias.shape}: allowed below {place or 'the model'!r}: one bias "
                        f"of the shape of its counts, {count_YE.shape}"
                    )
                new[path] = self.bias_update(bias, count_YE)
        return paths.map_with_path(lambda path, leaf: new.get(path, leaf), state)

    def _seen(self, place: str, local: Sums, others: Others) -> Sums:
        """The sums that a microbatch's losses are made of."""
        if self.accumulation == RUNNING:
            return {**local, "count_before": others.before[place]["count"]}
        if self.accumulation == TWO_PASS:
            return {name: _whole(local[name], others.all[place][name], others.number) for name in local}
        return local


class WithAuxiliary:
    """What Tasks with a field `auxiliary` have in common, see `training.task.Task`."""

    auxiliary: Auxiliary | None

    @property
    def accumulation(self) -> str | None:
        """What a loss in a microbatch takes in; None for a dense model."""
        return None if self.auxiliary is None else self.auxiliary.accumulation

    def update_state(self, state: Any, sums: Any) -> Any:
        """Returns the state after an optimizer step, from the sums of its microbatches."""
        return state if self.auxiliary is None else self.auxiliary.update_state(state, sums)


def added(
    auxiliary: Auxiliary | None, sums: Mapping[str, Sums], others: Others | None
) -> tuple[jax.Array | float, Metrics]:
    """Returns what sparse layers add to a Task's loss, and metrics; 0 and none for a dense model.

    Args:
      auxiliary: of the Task.
      sums: by place, see the module; {} where no layer gives any.
      others: see `Auxiliary.loss`.

    Raises:
      ValueError: there are sums and no `auxiliary`, or the other way round.
    """
    if bool(sums) != (auxiliary is not None):
        raise ValueError(
            "auxiliary is None, but layers of the model give sums; allowed: moe.auxiliary.Auxiliary"
            if sums
            else "auxiliary is given, but no layer of the model gives sums; allowed: None"
        )
    return (0.0, {}) if auxiliary is None else auxiliary.loss(sums, others)


def streams(rng: jax.Array) -> dict[str, jax.Array]:
    """Returns the random streams of a model: of dropout, and of routers. A dense model's dropout is that of
    `rng` itself."""
    return {"dropout": rng, "router": jax.random.fold_in(rng, 1)}


def _whole(local: jax.Array, all_M: jax.Array, number: jax.Array) -> jax.Array:
    """One of the sums of the whole batch, of which this microbatch's rows have a gradient, times M.

    The whole's gradient is the sum over microbatches of what goes through the rows of each, and the gradients
    of microbatches are averaged: hence M.
    """
    microbatches = len(all_M)
    if jnp.issubdtype(local.dtype, jnp.floating):
        zero = microbatches * (local - jax.lax.stop_gradient(local))
        all_M = jax.lax.stop_gradient(all_M).at[number].add(zero)
    rows = 0 if local.ndim == 1 else 1  # domains have no axis of layers
    in_order = jnp.moveaxis(all_M, 0, rows)
    return in_order.reshape(*local.shape[:rows], -1, *local.shape[rows + 1 :])


def _measures(sums: Mapping[str, Sums]) -> Metrics:
    """What is worth a look at any time, of all encoders together."""
    each = lambda name: [of(of_place, name) for of_place in sums.values()]
    total = lambda name: sum(x.sum() for x in each(name))
    load = [count.sum(1) / jnp.maximum(count.sum(1).mean(-1, keepdims=True), 1e-9) for count in each("count")]
    found = {
        "moe/dropped": total("dropped") / jnp.maximum(total("count"), 1),
        "moe/load_max": jnp.stack([x.max() for x in load]).max(),
    }
    if all("entropy" in of_place for of_place in sums.values()):
        found["moe/entropy"] = total("entropy") / jnp.maximum(total("tokens"), 1)
    return {name: jax.lax.stop_gradient(x) for name, x in found.items()}


def _additive(sums: Mapping[str, Sums]) -> dict[str, dict[str, jax.Array]]:
    """What is kept of a microbatch for later ones and for the end of the step."""
    return {place: {"count": jax.lax.stop_gradient(of_place["count"])} for place, of_place in sums.items()}


def _biases(state: Any, place: str) -> dict[str, jax.Array]:
    """The biases of the routers below a place, by their path in the state."""
    prefix = f"{COLLECTION}/{place}/" if place else f"{COLLECTION}/"
    leaves = zip(paths.paths(state), jax.tree.leaves(state), strict=True)
    return {path: x for path, x in leaves if path.startswith(prefix) and path.split("/")[-1] == "bias"}
