"""Next-token prediction as a Task for the loop.

Letters: B rows, L length, V vocabulary.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from moe.auxiliary import Auxiliary, WithAuxiliary, added, streams
from training import variables
from training.task import Batch, Metrics, Others

_READ = ("tokens", "mask", "segments", "positions", "domains")  # of the batch, by the model


@dataclasses.dataclass(frozen=True)
class Causal(WithAuxiliary):
    """Each token of a row is predicted from those before it.

        loss = - mean log p(target | tokens up to here)

    in nats, the mean being over the positions that the mask shows of all rows. With `microbatches` of the
    schedule it is the mean of the microbatches' means, as for every Task: a token of a microbatch with fewer
    tokens then weighs more.

    Parameters are `{"model": ...}`. The state has every other collection of the model's variables, such as
    the balancing bias of routers; `{}` for a dense model.

    Attributes:
      model: module `(batch, *, train) -> output`, where output has `logits` [B, L, V] and `aux`, such as
        `backbones.decoder.TransformerDecoder` without cross-attention.
      auxiliary: what sparse layers' sums come to; None for a dense model.
    """

    model: nn.Module
    auxiliary: Auxiliary | None = None

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        return variables.split(self.model.init(rng, read(batch)))

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
        """Expects `tokens`, `targets` and `mask` [B, L], and optionally `domains` [B], `segments` and
        `positions` [B, L].

        Raises:
          ValueError: the model has sparse layers and the Task no `auxiliary`, or the other way round.
        """
        output = self._apply(params, state, batch, rng, train=train)
        found_BL, valid_BL = _log_likelihood(output.logits, batch)
        loss = -found_BL.sum() / jnp.maximum(valid_BL.sum(), 1).astype(jnp.float32)
        more, metrics = added(self.auxiliary, _by_place(output, batch), others)
        return loss + more, (state, {**metrics, "cross_entropy": loss})

    def survey(self, params: Any, state: Any, batch: Batch, rng: jax.Array) -> Any:
        """Returns the sums that `loss` comes to from the same arguments in training."""
        return _by_place(self._apply(params, state, batch, rng, train=True), batch)

    def _apply(self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool) -> Any:
        of = self.variables(params, state)
        return self.model.apply(of, read(batch), train=train, rngs=streams(rng))

    def score(self, params: Any, state: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the log-likelihood of each row in nats, float32 [B], and its tokens, int32 [B]; without
        dropout."""
        output = self.model.apply(self.variables(params, state), read(batch))
        found_BL, valid_BL = _log_likelihood(output.logits, batch)
        return found_BL.sum(axis=1), valid_BL.sum(axis=1, dtype=jnp.int32)

    def variables(self, params: Any, state: Any) -> dict[str, Any]:
        """Returns what the model is applied with."""
        return variables.joined(params, state)


def read(batch: Batch) -> dict[str, jax.Array]:
    """Returns what the model sees of a batch: all but the targets."""
    return {name: batch[name] for name in _READ if name in batch}


def _by_place(output: Any, batch: Batch) -> dict[str, dict[str, jax.Array]]:
    """The sums of the model's layers, at the place of a model that is one stack; with the rows' domains where
    there are some. {} of a dense model."""
    if not output.aux:
        return {}
    domains = {"domains": batch["domains"]} if "domains" in batch else {}
    return {"": {**output.aux, **domains}}


def _log_likelihood(logits_BLV: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The targets' log-likelihood, float32 [B, L], 0 where the mask is False; and the mask, bool [B, L].

    Beside the logits there is one array of their size, their gradient; with jax.nn.log_softmax and a gather
    there were up to three on a CPU (on a TPU the compiler sees to it).
    """
    chex.assert_equal_shape([batch["targets"], batch["mask"], logits_BLV[:, :, 0]])
    valid_BL = batch["mask"].astype(bool)
    lost_BL = optax.softmax_cross_entropy_with_integer_labels(
        logits_BLV.astype(jnp.float32), batch["targets"]
    )
    return jnp.where(valid_BL, -lost_BL, 0.0), valid_BL


def batch_shapes(rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch, from which those of parameters and state follow (jax.eval_shape)."""
    shapes = {**dict.fromkeys(("tokens", "targets", "mask"), (rows, length)), "domains": (rows,)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}
