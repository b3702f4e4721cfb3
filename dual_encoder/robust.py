"""Distributionally robust training: groups of queries are weighed so that none is left behind.

Groups are those of `batch.groups`: topics for the first, tasks for the second.

    Clusters (iDRO)   Yu et al. (2022), "COCO-DR: Combating Distribution Shifts in Zero-Shot Dense Retrieval
                      with Contrastive and Distributionally Robust Learning"
    Tasks (tDRO)      Ma et al. (2025), "Task-level Distributionally Robust Optimization for Large Language
                      Model-based Dense Retrieval"; Group DRO without a reference

The objective of the base must take `weights`. Each group's weight and moving average of losses are logged as
`group/<number>/weight` and `group/<number>/loss`, and the largest of the latter as `group/worst`.

Letters: B queries, G groups, D width, N documents.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from corpora.tables import DataError
from dual_encoder.derived import OWN, Derived, Sizes, check_dense, of_base
from training import metrics as logged
from training import paths, warm_start
from training.build import SpecError
from training.task import Batch, GradientStep, Metrics, TrainState

_SMALLEST_REFERENCE = 1e-4  # a reference's loss below it counts as 1, as in the paper's code
_AVERAGED = 0.1  # the share of a step in the moving averages that are logged


@dataclasses.dataclass(frozen=True)
class Robust(Derived):
    """What both have in common.

    Attributes:
      groups: G; the experiment fills it in.

    Raises:
      ValueError: the base has sparse layers, or an objective that takes no weights.
    """

    groups: int = 1

    def __post_init__(self):
        name = type(self).__name__
        check_dense(self.base, name)
        if "weights" not in self.base.arrays:
            raise ValueError(f"{name}: the base's objective takes no weights; allowed: one that does")

    @property
    def reads(self) -> frozenset[str]:
        return self.base.reads | {"group"}

    def sized(self, sizes: Sizes) -> "Robust":
        if not sizes.groups:
            raise SpecError(f"{type(self).__name__} weighs groups; config.batch.groups names none")
        return dataclasses.replace(self, groups=sizes.groups)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        params, state = self.base.init(rng, batch)
        own = {
            "weights": jnp.full(self.groups, 1.0 / self.groups),
            "losses": jnp.zeros(self.groups),
            "seen": jnp.zeros(self.groups, bool),
        }
        return params, {**state, OWN: own}

    def _losses(self, params, query_BD, document_ND, batch, rng, weights_XB) -> jax.Array:
        """The losses [X] for several weighings of the queries; what does not depend on them is made once."""
        loss = lambda weights_B: self.base.compare(params, query_BD, document_ND, batch, weights_B, rng)[0]
        return jax.vmap(loss)(weights_XB)

    def _told(self, own: dict[str, Any]) -> Metrics:
        found = {"group/worst": jnp.where(own["seen"], own["losses"], -jnp.inf).max()}
        for group in range(self.groups):
            found[f"group/{group}/weight"] = own["weights"][group]
            found[f"group/{group}/loss"] = own["losses"][group]
        return found


@dataclasses.dataclass(frozen=True)
class Clusters(Robust):
    """iDRO: weights of clusters from their losses and from how far their gradients agree.

    With l_i the mean loss of cluster i in the batch, g_i its gradient of length 1, and w_i its weight,

        r_i = mean over all clusters j of (l_i l_j)^power (g_i . g_j),  a loss below 0 counting as 0
        w_i <- w_i^memory exp(rate r_i) / Z,  at least `floor`

    so that clusters count more which are hard and whose gradient helps others. The loss is the mean of
    G w_i l_i over the clusters in the batch, with the weights from before the step and the sum of all of them
    as 1: sum_i w_i l_i where all are there. A cluster that is not in the batch keeps its weight; Z leaves the
    others the sum that they had, so that a batch must have several.

    The gradients of all clusters are held at once: G times the parameters that `parameters` picks.

    Attributes:
      rate: rho; 0.05 in the paper's code, and so are the numbers below.
      power: alpha.
      memory: ema.
      floor: eps.
      parameters: a regular expression for the paths of those whose gradient is looked at, such as the last
        three layers in the paper; "" for all.
    """

    rate: float = 0.05
    power: float = 0.25
    memory: float = 0.1
    floor: float = 0.01
    parameters: str = ""

    def __post_init__(self):
        super().__post_init__()
        paths.check_expressions([self.parameters], "parameters")
        if not self.floor * self.groups <= 1:
            raise ValueError(f"floor is {self.floor}; allowed: at most 1 / {self.groups}, by the groups")

    def sized(self, sizes: Sizes) -> "Clusters":
        """Raises SpecError where there are no groups, or each batch is of one."""
        if sizes.one_group:
            raise SpecError(
                "Clusters weighs the groups of a batch against each other; config.batch.group_rows is the "
                "whole batch_size; allowed: half of it, or less"
            )
        return super().sized(sizes)

    def loss(
        self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        query_BD, document_ND, _ = self.base.vectors(params, of_base(state), batch, rng, train=train)
        counts_G = _counts(batch, self.groups)
        # Over all groups: over those of the batch it would undo the weights where it has few.
        weights_G = self.groups * state[OWN]["weights"] / state[OWN]["weights"].sum()
        weights_G = weights_G / (counts_G > 0).sum()
        weights_B = (weights_G / jnp.maximum(counts_G, 1))[batch["group"]] * len(batch["group"])
        loss, metrics = self.base.compare(params, query_BD, document_ND, batch, weights_B, rng)
        return loss, (state, {**metrics, **self._told(state[OWN])})

    def update(
        self, train_state: TrainState, batch: Batch, rng: jax.Array, gradient_step: GradientStep
    ) -> tuple[TrainState, Metrics]:
        """Takes the step with the weights as they are, and moves these by the batch's losses and
        gradients."""
        new, metrics = gradient_step(train_state, batch, rng)
        params, state = train_state.params, train_state.state
        chosen = {path for path in paths.paths(params) if re.search(self.parameters, path)}
        if not chosen:
            raise SpecError(
                f"parameters: {self.parameters!r} is found in no parameter; there are "
                f"{paths.shown(paths.paths(params))}"
            )

        def losses(params):
            params = paths.map_with_path(
                lambda path, x: x if path in chosen else jax.lax.stop_gradient(x), params
            )
            query_BD, document_ND, _ = self.base.vectors(params, of_base(state), batch, rng, train=True)
            means_GB = _means(batch, self.groups)
            return self._losses(params, query_BD, document_ND, batch, rng, means_GB)

        losses_G, back = jax.vjp(losses, params)
        gradients = jax.lax.map(lambda row_G: back(row_G)[0], jnp.eye(self.groups))
        products_GG = sum(
            jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)
            for flat in (leaf.reshape(self.groups, -1) for leaf in jax.tree.leaves(gradients))
        )
        own = new.state[OWN]
        present_G = _counts(batch, self.groups) > 0
        weights_G = moved(
            own["weights"], losses_G, products_GG, present_G, self.rate, self.power, self.memory, self.floor
        )
        own = {**_averaged(own, losses_G, present_G), "weights": weights_G}
        return new.replace(state={**new.state, OWN: own}), metrics


def moved(
    weights_G: jax.Array,
    losses_G: jax.Array,
    products_GG: jax.Array,
    present_G: jax.Array,
    rate: float,
    power: float,
    memory: float,
    floor: float,
) -> jax.Array:
    """Returns the weights of clusters after a step, see `Clusters`; `products_GG` are those of gradients."""
    norms_G = jnp.sqrt(jnp.diagonal(products_GG))
    cosines_GG = products_GG / jnp.maximum(norms_G[:, None] * norms_G[None, :], 1e-24)
    hard_G = jnp.where(present_G, jnp.maximum(losses_G, 0.0), 0.0) ** power
    agreement_G = (hard_G[:, None] * hard_G[None, :] * cosines_GG).mean(axis=1)
    grown_G = jnp.where(present_G, weights_G**memory * jnp.exp(rate * agreement_G), 0.0)
    sum_before = jnp.where(present_G, weights_G, 0.0).sum()
    grown_G = jnp.maximum(grown_G / grown_G.sum() * sum_before, floor)
    return jnp.where(present_G, grown_G, weights_G)


@dataclasses.dataclass(frozen=True)
class Tasks(Robust):
    """tDRO: weights of tasks grow with the loss of a query relative to that of a reference model.

        log w_i <- log w_i + rate mean over the queries b of task i of (loss_b / reference_b),  then to sum 1

    and the loss is the mean over queries, each counted G times its task's new weight, which is 1 where all
    are alike, so that a batch of one task counts by its weight too. A task that is not in the batch has a
    mean of 0. The weights, learned with a small model, are for the order of a larger one's
    training: see `weights_of`. Without a reference the loss itself takes the ratio's place: Sagawa et al.
    (2020), "Distributionally Robust Neural Networks for Group Shifts".

    With microbatches each of them moves the weights.

    Attributes:
      rate: eta; 0.02 here. The paper's code begins at 0.25.
      reference: a run of the same model, trained on all tasks alike, whose best parameters are the reference;
        "" for none.
    """

    rate: float = 0.02
    reference: str = ""

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        params, state = super().init(rng, batch)
        if self.reference:
            state = {**state, OWN: {**state[OWN], "reference": params}}
        return params, state

    def begin(self, params: Any, state: Any, encode: Callable) -> Any:
        """Returns the state with the parameters of the reference.

        Raises:
          CheckpointError: the reference has no best checkpoint.
          SpecError: it is of another model.
        """
        del encode  # the corpus is of no concern
        if not self.reference:
            return state
        reference, _, report = warm_start.load(params, {}, self.reference)
        if report.new:
            raise SpecError(
                f"config.task.reference: {self.reference} has no {paths.shown(report.new)}; allowed: a run "
                "of the same model"
            )
        return {**state, OWN: {**state[OWN], "reference": reference}}

    def loss(
        self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        own, of_model = state[OWN], of_base(state)
        vectors = self.base.vectors(params, of_model, batch, rng, train=train)[:2]
        if train:
            losses_B = self._of_queries(params, *vectors, batch, rng)
            relative_B = losses_B
            if self.reference:
                theirs = self.base.vectors(own["reference"], of_model, batch, rng, train=False)[:2]
                reference_B = self._of_queries(own["reference"], *theirs, batch, rng)
                relative_B = losses_B / jnp.where(reference_B < _SMALLEST_REFERENCE, 1.0, reference_B)
            means_GB = _means(batch, self.groups) / len(batch["group"])
            gains_G = means_GB @ jnp.maximum(relative_B, 0.0)
            present_G = _counts(batch, self.groups) > 0
            weights_G = jax.nn.softmax(jnp.log(own["weights"]) + self.rate * gains_G)
            own = {**_averaged(own, means_GB @ losses_B, present_G), "weights": weights_G}
        weights_B = self.groups * own["weights"][batch["group"]]
        loss, metrics = self.base.compare(params, *vectors, batch, weights_B, rng)
        return loss, ({**state, OWN: own}, {**metrics, **self._told(own)})

    def _of_queries(self, params, query_BD, document_ND, batch, rng) -> jax.Array:
        """Returns the loss [B] of each query, through which no gradient goes."""
        rows = len(query_BD)
        losses_B = self._losses(params, query_BD, document_ND, batch, rng, jnp.eye(rows) * rows)
        return jax.lax.stop_gradient(losses_B)


def weights_of(run: str, top: float = 1.0) -> tuple[float, ...]:
    """Returns the weights of groups that a run of `Tasks` or `Clusters` came to, for `batch.group_weights`.

    Args:
      run: its run directory, whose groups must be those of the new run.
      top: below 1, so much of the groups, those with the largest weights, are taken alike and the others left
        out: the paper's selection of data sets, which was best at 0.7.

    Raises:
      DataError: the run has logged no weights.
      ValueError: `top` is not above 0 and at most 1.
    """
    if not 0 < top <= 1:
        raise ValueError(f"top is {top}; allowed: above 0, at most 1")
    rows = [row for row in logged.read(run) if "group/0/weight" in row]
    if not rows:
        raise DataError(
            f"config.batch.group_weights: {run} has logged no weights of groups; allowed: a run whose task "
            "is dual_encoder.robust.Tasks or Clusters"
        )
    weights = []
    while (name := f"group/{len(weights)}/weight") in rows[-1]:
        weights.append(float(rows[-1][name]))
    if top == 1:
        return tuple(weights)
    kept = max(1, math.floor(top * len(weights)))
    largest = sorted(range(len(weights)), key=lambda group: -weights[group])[:kept]
    return tuple(1.0 if group in largest else 0.0 for group in range(len(weights)))


def _counts(batch: Batch, groups: int) -> jax.Array:
    return (batch["group"][:, None] == jnp.arange(groups)[None, :]).sum(axis=0)


def _means(batch: Batch, groups: int) -> jax.Array:
    """Returns weights [G, B] of queries, of mean 1, whose loss is the mean of a group; zeros for an absent
    one."""
    of_GB = (batch["group"][None, :] == jnp.arange(groups)[:, None]).astype(jnp.float32)
    return of_GB * of_GB.shape[1] / jnp.maximum(of_GB.sum(axis=1), 1.0)[:, None]


def _averaged(own: dict[str, Any], losses_G: jax.Array, present_G: jax.Array) -> dict[str, Any]:
    mixed_G = (1 - _AVERAGED) * own["losses"] + _AVERAGED * losses_G
    new_G = jnp.where(own["seen"], mixed_G, losses_G)
    return {
        **own,
        "losses": jnp.where(present_G, new_G, own["losses"]),
        "seen": own["seen"] | present_G,
    }
