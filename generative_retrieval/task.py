"""Spelling as a Task for the loop: a text goes in, the symbols of its document's id come out.

Letters: B rows, S length of a text, T symbols of an id, V symbols.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from backbones.attention import FLOOR
from generative_retrieval.consistency import Consistency
from generative_retrieval.models import TEXT, Spelled
from moe import leakage
from moe.auxiliary import Auxiliary, WithAuxiliary, added, streams
from training import variables
from training.task import Batch, Metrics, Others

READ = (*TEXT, "targets", "target_mask")


@dataclasses.dataclass(frozen=True)
class SequenceToSequence(WithAuxiliary):
    """Each symbol is predicted from the text and the symbols before it.

        loss = - mean log p(symbol | text, symbols before it)

    in nats, the mean being over all symbols that `target_mask` shows, as T5 and DSI have it (Tay et al.,
    2022, "Transformer Memory as a Differentiable Search Index"). Targets are docids where the model is to
    retrieve, and words where it is to write queries.

    Parameters are `{"model": ...}`; the state has every other collection of the model's variables.

    Attributes:
      model: such as `models.EncoderDecoder`.
      label_smoothing: the share of each target that is spread over all V symbols alike (Szegedy et al., 2016,
        "Rethinking the Inception Architecture for Computer Vision"); 0.1 in De Cao et al. (2021),
        "Autoregressive Entity Retrieval".
      auxiliary: what the sums of sparse layers come to; None for a dense model.
      consistency: what two passes of a text are held to in training, each of which has a loss; None for one.

    Raises:
      ValueError: label_smoothing is out of range.
    """

    model: nn.Module
    label_smoothing: float = 0.0
    auxiliary: Auxiliary | None = None
    consistency: Consistency | None = None

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; allowed: 0 to below 1")

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        return variables.split(self.model.init(rng, read(batch)))

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
        """Expects `tokens` and `mask` [B, S], `targets` and `target_mask` [B, T].

        Metrics: `symbol_accuracy`, the share of symbols that are the likeliest after the true ones before,
        and `id_accuracy`, the share of rows of which all are.

        Raises:
          ValueError: the model has sparse layers and the Task no `auxiliary`, or the other way round.
        """
        seen = self.seen(batch, train=train)
        spelled = self._apply(params, state, seen, rng, train=train)
        loss, metrics = self.weighed(spelled, seen, train=train, others=others)
        return loss, (state, metrics)

    def seen(self, batch: Batch, *, train: bool) -> Batch:
        """Returns the batch that the model is applied to."""
        return self.consistency.twice(batch) if self.consistency and train else batch

    def weighed(
        self, spelled: Spelled, seen: Batch, *, train: bool, others: Others | None
    ) -> tuple[jax.Array, Metrics]:
        """Returns loss and metrics of what the model made of a batch, see `seen`."""
        loss, metrics = cross_entropy(spelled.logits, seen, label_smoothing=self.label_smoothing)
        more, of_sparse = added(self.auxiliary, spelled.aux, others)
        if of_sparse:
            metrics = {**metrics, **of_sparse, "cross_entropy": loss}
        if self.consistency and train:
            apart = self.consistency.loss(spelled.last, seen["target_mask"].astype(bool))
            metrics = {**metrics, "consistency": apart, "cross_entropy": loss}
            more = more + self.consistency.weight * apart
        return loss + more, metrics

    def survey(self, params: Any, state: Any, batch: Batch, rng: jax.Array) -> Any:
        """Returns the sums that `loss` comes to from the same arguments in training."""
        return self._apply(params, state, self.seen(batch, train=True), rng, train=True).aux

    def score(self, params: Any, state: Any, batch: Batch) -> jax.Array:
        """Returns log p(id | text) of each row in nats, float32 [B]; without dropout."""
        spelled = self.model.apply(self.variables(params, state), read(batch))
        return log_likelihood(spelled.logits, batch)

    def _apply(self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool) -> Spelled:
        of = self.variables(params, state)
        return self.model.apply(of, read(batch), train=train, rngs=streams(rng))


class AroundSpelling:
    """What Tasks have in common that add a loss to that of `spelling`, which has the model."""

    spelling: SequenceToSequence

    @property
    def model(self) -> nn.Module:
        return self.spelling.model

    @property
    def accumulation(self) -> str | None:
        """See `training.task.Task`."""
        return self.spelling.accumulation

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        return self.spelling.init(rng, batch)

    def variables(self, params: Any, state: Any) -> dict[str, Any]:
        """Returns what the model is applied with."""
        return self.spelling.variables(params, state)

    def survey(self, params: Any, state: Any, batch: Batch, rng: jax.Array) -> Any:
        """See `training.task.Task`."""
        return self.spelling.survey(params, state, batch, rng)

    def update_state(self, state: Any, sums: Any) -> Any:
        """See `training.task.Task`."""
        return self.spelling.update_state(state, sums)

    def score(self, params: Any, state: Any, batch: Batch) -> jax.Array:
        """Returns log p(id | text) of each row in nats, float32 [B]; without dropout."""
        return self.spelling.score(params, state, batch)


def read(batch: Batch) -> dict[str, jax.Array]:
    """Returns what a model sees of a batch."""
    return {name: batch[name] for name in READ if name in batch}


def log_likelihood(logits_BTV: jax.Array, batch: Batch) -> jax.Array:
    """Returns the sum of the targets' log-probabilities, float32 [B]."""
    log_p_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)
    own_BT = jnp.take_along_axis(log_p_BTV, batch["targets"][:, :, None], axis=2)[:, :, 0]
    return jnp.where(batch["target_mask"].astype(bool), own_BT, 0.0).sum(axis=1)


def cross_entropy(
    logits_BTV: jax.Array, batch: Batch, *, label_smoothing: float = 0.0
) -> tuple[jax.Array, Metrics]:
    """Returns the loss of `SequenceToSequence` and its metrics, from logits float32 [B, T, V]."""
    targets_BT, shown_BT = batch["targets"], batch["target_mask"].astype(bool)
    chex.assert_equal_shape([targets_BT, shown_BT, logits_BTV[:, :, 0]])
    logits_BTV = logits_BTV.astype(jnp.float32)
    norm_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    own_BT = jnp.take_along_axis(logits_BTV, targets_BT[:, :, None], axis=2)[:, :, 0]
    lost_BT = norm_BT - (1 - label_smoothing) * own_BT
    if label_smoothing:  # over the symbols that the model does not rule out
        lost_BT = lost_BT - label_smoothing * logits_BTV.mean(axis=-1, where=logits_BTV > FLOOR)
    count = jnp.maximum(shown_BT.sum(), 1).astype(jnp.float32)
    right_BT = (jnp.argmax(logits_BTV, axis=-1) == targets_BT) | ~shown_BT
    metrics = {
        "symbol_accuracy": jnp.where(shown_BT, right_BT, False).sum() / count,
        "id_accuracy": right_BT.all(axis=1).mean(),
    }
    return jnp.where(shown_BT, lost_BT, 0.0).sum() / count, metrics


def smallest_batch(model: Any) -> Mapping[str, np.ndarray]:
    """Returns a batch that parameters can be shaped from: they depend on no batch size or length."""
    rows = leakage.group_rows(model)
    return dict.fromkeys(
        ("tokens", "mask", "segments", "targets", "target_mask"), np.zeros((rows, 1), np.int32)
    )
