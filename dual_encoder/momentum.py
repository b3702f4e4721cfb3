"""A queue of past keys as negatives, encoded by a slowly moving average of the model.

He et al. (2020), "Momentum Contrast for Unsupervised Visual Representation Learning" (MoCo), with texts as
Izacard et al. (2022), "Unsupervised Dense Information Retrieval with Contrastive Learning" (Contriever).

Letters: B queries, H listed negatives of a query, N = B (1 + H) documents, K keys of the queue, D width.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dual_encoder.derived import OWN, Derived, check_dense, check_whole, of_base, parameters_of_towers
from dual_encoder.task import documents, queries
from moe.auxiliary import streams
from training.task import Batch, GradientStep, Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class Momentum(Derived):
    """Queries are encoded by the model, documents by its average, and the queue has earlier documents.

    At each step the average moves first, keys <- m keys + (1 - m) params; it encodes the batch's documents,
    without dropout; a query is compared with its own document and with the queue; then the documents of the
    batch take the places of the oldest in the queue. No gradient goes through a document, so the towers must
    be one, or the document's have no parameter of its own.

    A key is kept with its document's row, so that a query's known positives are no negatives of it in the
    queue either. An empty place counts for nothing (MoCo fills the first queue with random vectors). For the
    objective the queue's keys are further listed documents of the queries: it sees B (1 + H + K / B) columns.

    Attributes:
      base: the model, the objective (`objectives.softmax.info_nce` in the papers) and its temperature.
      queue: K, a multiple of the batch; 131,072 in Contriever, 65,536 in MoCo.
      momentum: m; 0.9995 in Contriever, 0.999 in MoCo.
      in_batch: whether the other queries' own documents of the batch are negatives too; in the papers not.

    Raises:
      ValueError: a number is out of its range, or the base has sparse layers, chunks or a teacher.
    """

    queue: int = 65_536
    momentum: float = 0.999
    in_batch: bool = False

    def __post_init__(self):
        if self.queue < 1:
            raise ValueError(f"queue is {self.queue}; it must be at least 1")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum is {self.momentum}; allowed: 0 to 1")
        check_dense(self.base, "momentum")
        check_whole(self.base, "momentum")
        if "teacher" in self.base.arrays:
            raise ValueError(
                "momentum: the base's objective needs a teacher, who scores no queue; allowed: none"
            )

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        of_queries, of_documents = parameters_of_towers(self.model, batch)
        if of_documents - of_queries:
            raise ValueError(
                f"the document tower alone has {', '.join(sorted(of_documents - of_queries))}, which would "
                "get no gradient; allowed: dual_encoder.towers.tied"
            )
        params, state = self.base.init(rng, batch)
        encode = functools.partial(self.model.apply, method="encode_query")
        width = jax.eval_shape(encode, self.base.variables(params, state), queries(batch)).shape[-1]
        own = {
            "keys": params,
            "vectors": jnp.zeros((self.queue, width), jnp.float32),
            "rows": jnp.full(self.queue, -1, jnp.int32),
            "next": jnp.zeros((), jnp.int32),
        }
        return params, {**state, OWN: own}

    def begin(self, params: Any, state: Any, encode: Callable) -> Any:
        """Returns the state whose average begins at these parameters."""
        del encode  # the queue fills as the training goes on
        return {**state, OWN: {**state[OWN], "keys": params}}

    def loss(
        self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Expects the arrays of `corpora.batches.contrastive`. Metrics: the objective's, and `queue/filled`,
        the share of its places that are taken.

        Raises:
          ValueError: the batch does not divide the queue, or has more documents than it holds.
        """
        own, rows_BH = state[OWN], batch["document_rows"]
        if self.queue % rows_BH.shape[0] or self.queue < rows_BH.size:
            raise ValueError(
                f"queue is {self.queue}; allowed: a multiple of the batch's {rows_BH.shape[0]} queries, of "
                f"{rows_BH.size} or more, its documents"
            )
        encode = functools.partial(self.model.apply, rngs=streams(rng))
        variables = self.base.variables(params, of_base(state))
        query_BD = encode(variables, queries(batch), train=train, method="encode_query")
        averaged = self.base.variables(own["keys"], of_base(state))
        key_ND = jax.lax.stop_gradient(encode(averaged, documents(batch), method="encode_document"))

        split = lambda x: x.reshape(rows_BH.shape[0], -1, *x.shape[1:])
        columns = jnp.concatenate([split(key_ND), split(own["vectors"])], axis=1)
        # A row of -1 is no negative of anyone; its own query finds it all the same.
        own_rows_B1 = rows_BH[:, :1] if self.in_batch else jnp.full_like(rows_BH[:, :1], -1)
        rows = jnp.concatenate([own_rows_B1, rows_BH[:, 1:], split(own["rows"])], axis=1)
        seen = {**batch, "document_rows": rows}
        loss, metrics = self.base.compare(params, query_BD, columns.reshape(-1, columns.shape[-1]), seen)
        if train:
            state = {**state, OWN: self._enqueued(own, key_ND, rows_BH.reshape(-1))}
        return loss, (state, {**metrics, "queue/filled": (own["rows"] >= 0).mean()})

    def _enqueued(self, own: dict[str, Any], key_ND: jax.Array, rows_N: jax.Array) -> dict[str, Any]:
        places_N = (own["next"] + jnp.arange(rows_N.shape[0])) % self.queue
        return {
            **own,
            "vectors": own["vectors"].at[places_N].set(key_ND),
            "rows": own["rows"].at[places_N].set(rows_N),
            "next": (own["next"] + rows_N.shape[0]) % self.queue,
        }

    def update(
        self, train_state: TrainState, batch: Batch, rng: jax.Array, gradient_step: GradientStep
    ) -> tuple[TrainState, Metrics]:
        """Moves the average towards the parameters as they are, and takes the step with it."""
        own = train_state.state[OWN]
        move = lambda key, now: self.momentum * key + (1 - self.momentum) * now
        keys = jax.tree.map(move, own["keys"], train_state.params)
        state = {**train_state.state, OWN: {**own, "keys": keys}}
        return gradient_step(train_state.replace(state=state), batch, rng)
