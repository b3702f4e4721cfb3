"""Distillation from a late-interaction teacher that reads the same batch.

Letters: B queries, H listed negatives of a query, N = B (1 + H) documents, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dual_encoder.derived import Derived, check_dense, check_whole, of_base
from dual_encoder.late_interaction import LateInteraction
from dual_encoder.objectives import arrays
from dual_encoder.objectives.softmax import cross_entropy
from dual_encoder.task import documents, queries
from moe.auxiliary import streams
from training import ranking
from training.task import Batch, Metrics

_TEACHER = 2  # tells the teacher's key from that of the student
_SEEN = ("labels", "where")


@dataclasses.dataclass(frozen=True)
class TightlyCoupled(Derived):
    """A student learns from the scores that a ColBERT gives to every query with every document of the batch.

        loss = g * objective + (1 - g) * KL(teacher, student) + teacher_weight * InfoNCE of the teacher

    Lin et al. (2020), "Distilling Dense Representations for Ranking using Tightly-Coupled Teachers": since
    the teacher is there in every step it may score all pairs of a batch, which no table could hold. Theirs is
    trained first and then left alone: `init_from` takes a run of this Task for its teacher, with "^teacher/"
    in the base's `frozen` and a `teacher_weight` of 0, with which it has no dropout either. With one above 0
    it learns beside the student. The student gives it no gradient.

    Parameters are those of the base, and `teacher`.

    Attributes:
      base: the student, the objective and its temperature, which the KL takes too.
      teacher: the late-interaction model.
      contrastive_weight: g, 0 to 1.
      teacher_weight: of the teacher's own loss, 0 or more.
      teacher_temperature: what the teacher's scores are divided by, in its loss and in the KL.

    Raises:
      ValueError: a number is out of its range, or the base has sparse layers, chunks or a low-rank adapter.
    """

    teacher: LateInteraction
    contrastive_weight: float = 0.1
    teacher_weight: float = 1.0
    teacher_temperature: float = 1.0

    def __post_init__(self):
        if not 0 <= self.contrastive_weight <= 1:
            raise ValueError(f"contrastive_weight is {self.contrastive_weight}; allowed: 0 to 1")
        if self.teacher_weight < 0:
            raise ValueError(f"teacher_weight is {self.teacher_weight}; it must be at least 0")
        if not self.teacher_temperature > 0:
            raise ValueError(f"teacher_temperature is {self.teacher_temperature}; it must be positive")
        check_dense(self.base, "tightly_coupled")
        check_whole(self.base, "tightly_coupled")
        if self.base.lora is not None:
            raise ValueError("tightly_coupled: base has lora; allowed: none")

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        params, state = self.base.init(rng, batch)
        key = jax.random.fold_in(rng, _TEACHER)
        made = self.teacher.init(key, queries(batch), documents(batch))
        return {**params, "teacher": made["params"]}, state

    def loss(
        self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Expects the arrays of `corpora.batches.contrastive`."""
        query_BD, document_ND, _ = self.base.vectors(params, of_base(state), batch, rng, train=train)
        loss, metrics = self.base.compare(params, query_BD, document_ND, batch, rng=rng)
        temperature = self.base.current_temperature(params)
        labels_B, where_BN = arrays.given(_SEEN, batch, temperature).values()
        learns = self.teacher_weight > 0
        teacher_BN = self.teacher.apply(
            {"params": params["teacher"]},
            queries(batch),
            documents(batch),
            train=train and learns,
            rngs=streams(jax.random.fold_in(rng, _TEACHER)),
        )
        teacher_BN = (teacher_BN if learns else jax.lax.stop_gradient(teacher_BN)) / self.teacher_temperature
        apart = ranking.kl(query_BD @ document_ND.T / temperature, teacher_BN, where=where_BN)
        own_B, correct_B = cross_entropy(teacher_BN, labels_B, where_BN)
        g = self.contrastive_weight
        total = g * loss + (1 - g) * apart + self.teacher_weight * own_B.mean()
        return jnp.asarray(total), (
            state,
            {
                **metrics,
                "contrastive": loss,
                "distillation": apart,
                "teacher/loss": own_B.mean(),
                "teacher/accuracy": correct_B.mean(),
            },
        )
