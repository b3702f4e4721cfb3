"""Training of a cross-encoder, as a Task for the loop.

Letters: B queries, H listed negatives of each, P = B (1 + H) pairs, L length.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cross_encoder import losses
from cross_encoder.model import CrossEncoder
from moe import leakage
from moe.auxiliary import Auxiliary, WithAuxiliary, added, streams
from training import variables
from training.task import Batch, Metrics, Others

READ = ("tokens", "mask", "segments")


def smallest_batch(model: CrossEncoder) -> dict[str, np.ndarray]:
    """Returns a batch that parameters can be shaped from: they depend on no batch size or length."""
    rows = leakage.group_rows(model)
    pairs = {name: np.zeros((rows, 1, 1), np.int32) for name in READ}
    return {**pairs, "document_rows": np.zeros((rows, 1), np.int32)}


@dataclasses.dataclass(frozen=True)
class Ranking(WithAuxiliary):
    """Scores a query's relevant document above its listed negatives.

    Parameters are `{"model": ...}`. The state has every other collection of the model's variables, such as
    the balancing bias of routers; `{}` for a dense model.

    Attributes:
      model: the cross-encoder.
      objective: one of `cross_encoder.losses`.
      auxiliary: what the sums of sparse layers come to; None for a dense model.
    """

    model: CrossEncoder
    objective: Callable = losses.localized_contrastive
    auxiliary: Auxiliary | None = None

    def __post_init__(self):
        if not isinstance(self.model, CrossEncoder):
            raise ValueError(f"model is {self.model!r:.60}; allowed: a cross_encoder.model.CrossEncoder")
        if not callable(self.objective):
            raise ValueError(f"objective is {self.objective!r}; allowed: a function of cross_encoder.losses")

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        return variables.split(self.model.init(rng, _rows(batch)))

    def variables(self, params: Any, state: Any) -> dict[str, Any]:
        """Returns what the model is applied with."""
        return variables.joined(params, state)

    def loss(
        self,
        params: Any,
        state: Any,
        batch: Batch,
        rng: jax.Array,
        *,
        train: bool,
        others: Others | None = None,
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Expects the arrays of `cross_encoder.pairs.batches`.

        Raises:
          ValueError: the model has sparse layers and the Task no `auxiliary`, or the other way round.
        """
        scores_P, sums = self._apply(params, state, batch, rng, train=train)
        where_BH = batch["document_rows"] >= 0
        loss, metrics = self.objective(scores_P.reshape(where_BH.shape), where=where_BH)
        more, of_sparse = added(self.auxiliary, {"": sums} if sums else {}, others)
        if of_sparse:
            metrics = {**metrics, **of_sparse, "ranking": loss}
        return loss + more, (state, metrics)

    def survey(self, params: Any, state: Any, batch: Batch, rng: jax.Array) -> Any:
        """Returns the sums that `loss` comes to from the same arguments in training."""
        return {"": self._apply(params, state, batch, rng, train=True)[1]}

    def _apply(self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool) -> Any:
        """The scores [P] of a batch, and the sums of its sparse layers [Y, P, ...]."""
        of = self.variables(params, state)
        return self.model.apply(of, _rows(batch), train=train, rngs=streams(rng))


def _rows(batch: Batch) -> dict[str, jax.Array]:
    """The pairs of a batch, [B, 1 + H, L], as rows [P, L]."""
    return {name: (x := batch[name]).reshape(-1, x.shape[-1]) for name in READ}
