"""What an objective is handed: two sides of vectors, and the arrays that its signature names.

    objective(query_vectors [B, D], document_vectors [N, D], *, <arrays>) -> (loss [], metrics)

N = B (1 + H): the documents of query b are the columns b (1 + H) to b (1 + H) + H, its own first. Of these
arrays an objective names those that it needs:

    labels       int32 [B], the column of each query's own document
    where        bool [B, N], which documents count for a query: its own, and those that are no known
                 positives of it
    candidates   dual_encoder.candidates.Candidates: what `where` is made of, for an objective that never
                 makes it whole
    relevant     bool [B, N], the known positives of a query, its own included
    temperature  [], what scores are divided by
    bias         [], what is added to scores; a Task learns it
    weights      float32 [B], how much each query counts in the mean, 1 where all are alike
    teacher      float32 [B, 1 + H], a teacher's score of each listed document, NaN where there is none; the
                 field `batch.teacher` of a config says whose
    target       float32 [B, D], a vector that each query's is to be like; the field `batch.targets` of a
                 config says whose
    rng          a random key of the step

Under `jit` they are global, so in-batch negatives come from the whole batch whatever the number of devices.
An objective made of another one (see `matryoshka`) names what that one does.

Letters: B queries, N documents, H listed negatives of a query, D width.
"""

import functools
import inspect
from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from dual_encoder.candidates import Candidates

Metrics = dict[str, jax.Array]
ARRAYS = (
    "labels", "where", "candidates", "relevant", "temperature", "bias", "weights", "teacher", "target", "rng",
)  # fmt: skip


def named(objective: Callable) -> tuple[str, ...]:
    """Returns which of `ARRAYS` an objective is to be handed.

    Raises:
      ValueError: it needs something else.
    """
    if not callable(objective):
        raise ValueError(f"objective is {objective!r}; allowed: a function of dual_encoder.objectives")
    _, _, *others = inspect.signature(objective).parameters.values()
    needed = [p.name for p in others if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
    for name in needed:
        if name not in ARRAYS:
            raise ValueError(f"objective needs {name}; a Task can hand it {', '.join(ARRAYS)}")
    return tuple(p.name for p in others if p.name in ARRAYS)


def given(
    names: tuple[str, ...],
    batch: Mapping[str, jax.Array],
    temperature: jax.Array,
    weights_B: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    rng: jax.Array | None = None,
) -> dict[str, jax.Array | Candidates]:
    """Returns the arrays of these names, of a batch of `corpora.batches.contrastive`.

    Raises:
      ValueError: the batch has no scores of a teacher or no vectors to be like, or a key or bias was not
        given, and it is needed.
    """
    rows_BH = batch["document_rows"]
    labels_B = jnp.arange(rows_BH.shape[0]) * rows_BH.shape[1]
    candidates = Candidates(batch["positives"], rows_BH.reshape(-1))
    makers = {
        "labels": lambda: labels_B,
        "where": lambda: candidates.where(labels_B),
        "candidates": lambda: candidates,
        "relevant": lambda: candidates.relevant() | candidates.own(labels_B),
        "temperature": lambda: temperature,
        "weights": lambda: jnp.ones(rows_BH.shape[0], jnp.float32) if weights_B is None else weights_B,
        "teacher": functools.partial(_of_batch, batch, "teacher", "a teacher's scores; config.batch.teacher"),
        "target": functools.partial(_of_batch, batch, "target", "vectors of queries; config.batch.targets"),
        "bias": lambda: _there("bias", bias),
        "rng": lambda: _there("rng", rng),
    }
    return {name: makers[name]() for name in names}


def _of_batch(batch: Mapping[str, jax.Array], name: str, what: str) -> jax.Array:
    if name not in batch:
        raise ValueError(f"the objective needs {what} names none")
    return batch[name]


def _there(name: str, x: jax.Array | None) -> jax.Array:
    if x is None:
        raise ValueError(f"the objective needs {name}, which this Task does not hand on")
    return x


def listed(scores_BN: jax.Array, listed: int) -> jax.Array:
    """Returns the scores [B, 1 + H] of each query's own columns, `listed` = 1 + H."""
    batch = scores_BN.shape[0]
    columns_BH = jnp.arange(batch)[:, None] * listed + jnp.arange(listed)[None, :]
    return jnp.take_along_axis(scores_BN, columns_BH, axis=1)


def check_shapes(
    query_BD: jax.Array, document_ND: jax.Array, labels_B: jax.Array, where_BN: jax.Array
) -> None:
    """Raises AssertionError (chex) unless the shapes fit."""
    chex.assert_rank([query_BD, document_ND], 2)
    chex.assert_equal_shape_suffix([query_BD, document_ND], 1)
    chex.assert_shape(labels_B, (query_BD.shape[0],))
    chex.assert_shape(where_BN, (query_BD.shape[0], document_ND.shape[0]))
