"""Dynamic hard negatives: what the query tower finds at each step among the frozen vectors of the corpus.

ADORE of Zhan et al. (2021), "Optimizing Dense Retrieval Model Training with Hard Negatives".

Letters: B queries, N passages of the corpus and padding, D width, K passages found for a query, P known
positives of a query, C = K + P candidates.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from dual_encoder.derived import (
    OWN,
    Derived,
    Sizes,
    check_dense,
    check_unmeasured,
    check_whole,
    of_base,
    parameters_of_towers,
)
from dual_encoder.task import queries
from index import exact
from moe.auxiliary import streams
from training.mesh import BATCH_AXES
from training.task import Batch, GradientStep, Metrics, TrainState

_NO_DOCUMENT = np.iinfo(np.int32).max  # of padding, so that documents stay ascending
_FAR = -1e30  # added to the score of padding; finite, for infinity times 0 is no number


@dataclasses.dataclass(frozen=True)
class Dynamic(Derived):
    """Trains the query tower against the passages that it finds itself, at each step anew.

    The corpus is encoded once, with the parameters that the training begins with (`init_from` of a config),
    and carried in the state, its rows over the devices that share a batch. Documents get no gradient, and all
    parameters but the query tower's stay as they were, so that evaluation finds the documents where they were
    frozen. Of each batch only the queries and `positives` are read.

    The loss is LambdaRank's (Burges, 2010, "From RankNet to LambdaRank to LambdaMART"): the mean over pairs
    of a relevant passage i and another one j of |1 / r_i - 1 / r_j| log(1 + exp((s_j - s_i) / t)), where r is
    the rank and 1 / r counts as 0 behind `cut`: what swapping the two changes of the reciprocal rank. Where
    none of the K is relevant, the known positives (the first passage of each) join behind them.

    The paper scores by plain products; here they are divided by the base's temperature, which is not trained,
    as vectors may have length 1. The objective of the base takes no part.

    Attributes:
      base: model and temperature.
      negatives: K; 200 in the paper.
      cut: the rank behind which nothing is gained; 200 in the paper's code.
      passages: of the corpus; the experiment fills it in, see `sized`.
      parts: likewise, N is a multiple of it.

    Raises:
      ValueError: a number is below 1, the towers share parameters, or the base has sparse layers, chunks,
        measures or lora.
    """

    negatives: int = 200
    cut: int = 200
    passages: int = 1
    parts: int = 1
    state_rules = ((f"^{OWN}/vectors$", ("batch", None)), (f"^{OWN}/documents$", ("batch",)))

    def __post_init__(self):
        for field in ("negatives", "cut", "passages", "parts"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
        check_dense(self.base, "dynamic")
        check_whole(self.base, "dynamic")
        check_unmeasured(self.base, "dynamic")
        if self.base.lora is not None:
            raise ValueError("dynamic: base has lora; allowed: None, as the query tower itself is trained")

    @property
    def reads(self) -> frozenset[str]:
        """Nothing: of a batch only the queries and their positives count."""
        return frozenset()

    def sized(self, sizes: Sizes) -> "Dynamic":
        return dataclasses.replace(self, passages=sizes.passages, parts=sizes.parts)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        shared = set.intersection(*parameters_of_towers(self.model, batch))
        if shared:
            raise ValueError(
                f"the towers share {', '.join(sorted(shared))}, which would be trained and frozen at once; "
                "allowed: dual_encoder.towers.separate"
            )
        params, state = self.base.init(rng, batch)
        encode = functools.partial(self.model.apply, method="encode_query")
        variables = self.base.variables(params, state)
        width = jax.eval_shape(encode, variables, queries(batch)).shape[-1]
        size = -(-self.passages // self.parts) * self.parts
        own = {
            "vectors": jnp.zeros((size, width), jnp.float32),
            "documents": jnp.full(size, _NO_DOCUMENT, jnp.int32),
        }
        return params, {**state, OWN: own}

    def begin(self, params: Any, state: Any, encode: Callable[[Any], tuple[np.ndarray, np.ndarray]]) -> Any:
        """Returns the state with the vectors of the corpus as these parameters give them."""
        vectors_RD, document_R = encode(self.variables(params, state))
        more = len(state[OWN]["documents"]) - len(document_R)
        own = {
            "vectors": np.pad(np.asarray(vectors_RD, np.float32), ((0, more), (0, 0))),
            "documents": np.pad(np.asarray(document_R, np.int32), (0, more), constant_values=_NO_DOCUMENT),
        }
        return {**state, OWN: own}

    def loss(
        self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Expects the queries and `positives` of `corpora.batches.contrastive`.

        Metrics: `corpus/mrr@10` and `corpus/found`, the share of queries of which one of the K is relevant.
        """
        variables = self.base.variables(params, of_base(state))
        query_BD = self.model.apply(
            variables, queries(batch), train=train, rngs=streams(rng), method="encode_query"
        )
        own = jax.lax.stop_gradient(state[OWN])
        k = min(self.negatives, self.passages)
        rows_BK = search(own["vectors"], own["documents"], jax.lax.stop_gradient(query_BD), k)
        found_BK = own["documents"][rows_BK]
        positives_BP = batch["positives"]
        relevant_BK = (found_BK[:, :, None] == positives_BP[:, None, :]).any(axis=2)
        first_BP = jnp.searchsorted(own["documents"], positives_BP)
        joins_BP = (positives_BP >= 0) & ~relevant_BK.any(axis=1)[:, None]

        rows_BC = jnp.concatenate([rows_BK, first_BP], axis=1)
        relevant_BC = jnp.concatenate([relevant_BK, joins_BP], axis=1)
        there_BC = jnp.concatenate([jnp.ones_like(relevant_BK), joins_BP], axis=1)
        scores_BC = jnp.einsum("bd,bcd->bc", query_BD, own["vectors"][rows_BC])
        temperature = jax.lax.stop_gradient(self.base.current_temperature(params))
        loss = pairwise(scores_BC / temperature, relevant_BC, there_BC, self.cut)

        best_B = jnp.where(relevant_BK.any(axis=1), relevant_BK.argmax(axis=1) + 1, k + 1)
        metrics = {
            "corpus/mrr@10": jnp.where(best_B <= min(10, k), 1.0 / best_B, 0.0).mean(),
            "corpus/found": relevant_BK.any(axis=1).astype(jnp.float32).mean(),
            "temperature": temperature,
        }
        return loss, (state, metrics)

    def update(
        self, train_state: TrainState, batch: Batch, rng: jax.Array, gradient_step: GradientStep
    ) -> tuple[TrainState, Metrics]:
        """One step of the query tower; whatever the optimizer does to all else, such as decay, is undone."""
        new, metrics = gradient_step(train_state, batch, rng)
        model = {**train_state.params["model"], "query": new.params["model"]["query"]}
        return new.replace(params={**train_state.params, "model": model}), metrics


def pairwise(scores_BC: jax.Array, relevant_BC: jax.Array, there_BC: jax.Array, cut: int) -> jax.Array:
    """LambdaRank's loss [] of rankings; see `Dynamic`.

    Args:
      scores_BC: float32, of candidates in the order of their ranks.
      relevant_BC: bool.
      there_BC: bool, which candidates there are; one that is not has no rank of its own.
      cut: the rank behind which nothing is gained.
    """
    rank_C = jnp.arange(1, scores_BC.shape[1] + 1)
    gain_C = jnp.where(rank_C <= cut, 1.0 / rank_C, 0.0)
    weight_CC = jnp.abs(gain_C[:, None] - gain_C[None, :])
    pair_BCC = relevant_BC[:, :, None] & (there_BC & ~relevant_BC)[:, None, :]
    losses_BCC = jax.nn.softplus(scores_BC[:, None, :] - scores_BC[:, :, None]) * weight_CC[None]
    sums_B = jnp.where(pair_BCC, losses_BCC, 0.0).sum(axis=(1, 2))
    return (sums_B / jnp.maximum(pair_BCC.sum(axis=(1, 2)), 1)).mean()


def search(vectors_ND: jax.Array, documents_N: jax.Array, query_BD: jax.Array, k: int) -> jax.Array:
    """Returns the k best passages of each query, rows int32 [B, k], as `index.exact` finds them.

    Over a mesh each device searches its rows for all queries, and the best of all devices are taken; so a
    device holds a part of the vectors and sends k scores and rows a query.

    Args:
      vectors_ND: float32.
      documents_N: int32, of each passage; padding stands last and has none.
      query_BD: float32.
      k: at most the passages there are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in BATCH_AXES if mesh.shape.get(name, 1) > 1)
    if not axes:
        return _nearest(vectors_ND, documents_N, query_BD, k)[1]
    each = vectors_ND.shape[0] // math.prod(mesh.shape[name] for name in axes)

    def of_device(vectors_ND, documents_N, query_BD):
        scores_Bk, rows_Bk = _nearest(vectors_ND, documents_N, query_BD, min(k, each))
        rows_Bk = rows_Bk + each * jax.lax.axis_index(axes)
        together = lambda x: jax.lax.all_gather(x, axes, axis=1, tiled=True)
        # Devices stand in the order of their rows, and the first of equal scores is taken.
        _, at_BK = jax.lax.top_k(together(scores_Bk), k)
        return jnp.take_along_axis(together(rows_Bk), at_BK, axis=1)

    parts = PartitionSpec(axes)
    whole = PartitionSpec()
    return jax.shard_map(
        of_device, mesh=mesh, in_specs=(parts, parts, whole), out_specs=whole, check_vma=False
    )(vectors_ND, documents_N, query_BD)


def _nearest(vectors_ND, documents_N, query_BD, k):
    """Scores and rows of the k best; padding comes last, by one more coordinate that only it has."""
    far_N1 = jnp.where(documents_N == _NO_DOCUMENT, _FAR, 0.0)[:, None]
    index = exact.build(jnp.concatenate([vectors_ND, far_N1], axis=1))
    return exact.search(index, jnp.pad(query_BD, ((0, 0), (0, 1)), constant_values=1.0), k)
