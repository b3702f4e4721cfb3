"""Hard negatives that may be unjudged positives, weighed by how likely they were to be judged.

    task=dict(name="dual_encoder.coupled_estimation.CoupledEstimation", base=dict(...), debias=2.0)

Judgements are made of a pool that some retriever selected, so what is not judged relevant may never have been
looked at. Two models are learned together: of relevance, the retriever, and of selection, which is told the
same pairs. Each weighs the other's negatives by the inverse of the probability that they were not selected,
or are not relevant: what looks as if it had been in the pool, and yet is not judged relevant, is a negative
for certain.

Cai et al. (2022), "Hard Negatives or False Negatives: Correcting Pooling Bias in Training Neural Ranking
Models", Coupled Estimation Technique, as in the code released with it: with the logits r of relevance and s
of selection, of a query's labeled positive y and a negative n, the losses of a pair are

    (1 + exp(s_n / debias)) log(1 + exp(r_n - r_y))    and    (1 + exp(r_n / debias)) log(1 + exp(s_n - s_y))

where 1 + exp(x) = 1 / (1 - sigmoid(x)); a weight gets no gradient. There the models are cross-encoders, a
pair has one negative, and weights come from a pass without dropout; here both are dual encoders, logits are
products of vectors over the temperature, a query has the mean over its listed negatives, and weights come
from the same pass.

Letters: B queries, H listed negatives of each, N = B (1 + H) documents, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dual_encoder.derived import Derived, check_unmeasured
from dual_encoder.objectives import arrays
from training.task import Batch, Metrics, Others

SELECTION = "selection"


@dataclasses.dataclass(frozen=True)
class CoupledEstimation(Derived):
    """Parameters are those of the base, and `selection`, those of a second model like it. Both are trained at
    each step, by a sum of losses that share no parameter.

    Attributes:
      base: the contrastive Task. Its model is what is evaluated; its objective is that of
        `contrastive_weight`.
      debias: what logits are divided by in weights: the higher, the more alike they are.
      contrastive_weight: of the base's objective over the batch's relevant documents alone, which no pooling
        chose; 0, as in the paper, for listed negatives alone.

    Raises:
      ValueError: debias is not positive, contrastive_weight negative, or the base has sparse layers or
      adapters, or measures where contrastive_weight is 0.
    """

    debias: float = 2.0
    contrastive_weight: float = 0.0

    def __post_init__(self):
        if not self.debias > 0:
            raise ValueError(f"debias is {self.debias}; it must be positive")
        if self.contrastive_weight < 0:
            raise ValueError(f"contrastive_weight is {self.contrastive_weight}; it must be at least 0")
        for field in ("auxiliary", "lora"):
            if getattr(self.base, field) is not None:
                raise ValueError(f"base.{field} is given; allowed: None, a dense model that is trained whole")

        if not self.contrastive_weight:
            check_unmeasured(self.base, "coupled_estimation with contrastive_weight 0")

    @property
    def reads(self) -> frozenset[str]:
        """Listed negatives; and what the base's objective names, where that counts."""
        return self.base.reads if self.contrastive_weight else frozenset(("negatives",))

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        rng, other = jax.random.split(rng)
        params, state = self.base.init(rng, batch)
        second, _ = self.base.init(other, batch)
        return {**params, SELECTION: second["model"]}, state

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
        """Expects the arrays of `corpora.batches.contrastive`, with listed negatives.

        Raises:
          ValueError: queries list no negatives; and what `Contrastive.loss` raises.
        """
        del others
        width = batch["document_rows"].shape[1]
        if width < 2:
            raise ValueError(
                "queries list 0 negatives; allowed: config.batch.negatives_per_query of 1 or more"
            )
        query_BD, document_ND, _ = self.base.vectors(params, state, batch, rng, train=train)
        second = {**params, "model": params[SELECTION]}
        rng_of_second = jax.random.fold_in(rng, 1)
        of_selection = self.base.vectors(second, state, batch, rng_of_second, train=train)[:2]
        temperature = self.base.current_temperature(params)
        relevance_BH = _listed(query_BD, document_ND, width) / temperature
        selection_BH = _listed(*of_selection, width) / jax.lax.stop_gradient(temperature)
        where_BN = arrays.given(("where",), batch, temperature)["where"]
        there_BH = arrays.listed(where_BN, width)[:, 1:]
        relevance, weight_B = weighted_pairs(relevance_BH, selection_BH, there_BH, self.debias)
        selection, _ = weighted_pairs(selection_BH, relevance_BH, there_BH, self.debias)
        loss, metrics = relevance + selection, {"relevance": relevance, "selection": selection}
        metrics["weight"] = weight_B.mean()
        if self.contrastive_weight:
            alone = {**batch, "document_rows": batch["document_rows"][:, :1]}
            contrast, measured = self.base.compare(params, query_BD, document_ND[::width], alone, rng=rng)
            loss = loss + self.contrastive_weight * contrast
            metrics |= {**measured, "contrastive": contrast}
        return loss, (state, metrics)


def weighted_pairs(
    scores_BH: jax.Array, other_BH: jax.Array, there_BH: jax.Array, debias: float
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean over queries of the mean over listed negatives n of (1 + exp(other_n / debias))
    log(1 + exp(s_n - s_y)), and each query's mean weight.

    Args:
      scores_BH: float32 [B, 1 + H], the labeled positive y first.
      other_BH: likewise, of the other model; a constant.
      there_BH: bool [B, H], which negatives are there.
      debias: positive.

    >>> scores, other = jnp.array([[1.0, 1.0]]), jnp.array([[9.0, 0.0]])
    >>> loss, _ = weighted_pairs(scores, other, jnp.ones((1, 1), bool), 2.0)
    >>> print(f"{loss:.4f}")  # 2 log 2
    1.3863
    """
    weight_BH = 1 + jnp.exp(jax.lax.stop_gradient(other_BH[:, 1:]) / debias)
    lost_BH = jax.nn.softplus(scores_BH[:, 1:] - scores_BH[:, :1])
    count_B = jnp.maximum(there_BH.sum(axis=1), 1)
    of = lambda x_BH: jnp.where(there_BH, x_BH, 0.0).sum(axis=1) / count_B
    return of(weight_BH * lost_BH).mean(), of(weight_BH)


def _listed(query_BD: jax.Array, document_ND: jax.Array, width: int) -> jax.Array:
    document_BHD = document_ND.reshape(-1, width, document_ND.shape[1])
    return jnp.einsum("bd,bhd->bh", query_BD, document_BHD)
