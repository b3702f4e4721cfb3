"""Contrastive training of a dual encoder, as a Task for the loop.

Letters: B queries, H listed negatives of each, L length, N = B (1 + H) documents.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dual_encoder import objectives
from dual_encoder.towers import DualEncoder
from training.task import Batch, Metrics

_FIELDS = ("tokens", "mask", "segments")
# What parameters can be shaped from: they depend on no batch size or length.
SMALLEST_BATCH = {
    **{f"query_{name}": np.zeros((1, 1), np.int32) for name in _FIELDS},
    **{f"document_{name}": np.zeros((1, 1, 1), np.int32) for name in _FIELDS},
    "document_rows": np.zeros((1, 1), np.int32),
    "positives": np.zeros((1, 1), np.int32),
}


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Pulls a query to its relevant document, away from the others of the batch.

    Parameters are `{"model": ...}`, and `log_temperature` [] where the temperature is learned; the Task
    has no other state.

    Attributes:
      model: the dual encoder.
      objective: one of `dual_encoder.objectives`, waiting for its arrays.
      temperature: what scores are divided by, or where it starts if it is learned.
      learn_temperature: whether it is trained with the model, as min_temperature + exp(parameter).
      min_temperature: what a learned temperature stays above; 0.01 as in CLIP (Radford et al., 2021),
        where it is a clip, at which a temperature would get no gradient any more.
      measures: by name, functions of `eval.on_device` that wait for their arrays. Each is logged as
        `batch/<name>`, its mean over queries, which rank the documents that their loss compares; a tie is
        lost, as for `accuracy`. Their product of the vectors is the objective's, which XLA computes once.

    Raises:
      ValueError: a temperature that is not positive, or a measure that is no function.
    """

    model: DualEncoder
    objective: Callable = objectives.info_nce
    temperature: float = 0.05
    learn_temperature: bool = False
    min_temperature: float = 0.01
    measures: Mapping[str, Callable] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be positive")
        if self.learn_temperature and not 0 < self.min_temperature < self.temperature:
            raise ValueError(
                f"min_temperature is {self.min_temperature}; it must be positive and below temperature, "
                f"{self.temperature}"
            )
        for name, measure in self.measures.items():
            if not callable(measure):
                raise ValueError(
                    f"measures[{name!r}] is {measure!r}; allowed: a function such as eval.on_device.mrr"
                )

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        params = self.model.init(rng, queries(batch), documents(batch))["params"]
        if not self.learn_temperature:
            return {"model": params}, {}
        return {"model": params, "log_temperature": jnp.log(self.temperature - self.min_temperature)}, {}

    def loss(
        self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Expects the arrays of `corpora.batches.contrastive`."""
        query_BD, document_ND = self.model.apply(
            {"params": params["model"]}, queries(batch), documents(batch), train=train, rngs={"dropout": rng}
        )
        labels_B = jnp.arange(query_BD.shape[0]) * batch["document_rows"].shape[1]
        where_BN = objectives.candidates(batch["positives"], batch["document_rows"].reshape(-1), labels_B)
        temperature = self.current_temperature(params)
        loss, metrics = self.objective(
            query_BD, document_ND, labels=labels_B, where=where_BN, temperature=temperature
        )
        measured = self._measure(query_BD, document_ND, labels_B, where_BN) if self.measures else {}
        return loss, (state, {**metrics, **measured, "temperature": temperature})

    def current_temperature(self, params: Any) -> jax.Array:
        if not self.learn_temperature:
            return jnp.float32(self.temperature)
        return self.min_temperature + jnp.exp(params["log_temperature"])

    def _measure(self, query_BD, document_ND, labels_B, where_BN) -> Metrics:
        scores_BN = jax.lax.stop_gradient(query_BD @ document_ND.T)
        own_BN = (labels_B[:, None] == jnp.arange(scores_BN.shape[1])[None, :]).astype(jnp.int32)
        return {
            f"batch/{name}": measure(scores_BN, own_BN, where=where_BN, tie_rank=own_BN).mean()
            for name, measure in self.measures.items()
        }


def queries(batch: Batch) -> dict[str, jax.Array]:
    """The query side of a batch, each [B, L]."""
    return {name: batch[f"query_{name}"] for name in _FIELDS}


def documents(batch: Batch) -> dict[str, jax.Array]:
    """The document side of a batch, [B, 1 + H, L] flattened to [N, L]."""
    return {name: (x := batch[f"document_{name}"]).reshape(-1, x.shape[-1]) for name in _FIELDS}
