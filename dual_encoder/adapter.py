"""A small change of vectors that are there already: no encoder is run, let alone trained.

    adapted(e) = e + A (B e),  B [R, D], A [D, R]

Khatry et al. (2023), "Augmented Embeddings for Custom Retrievals", Adapted Dense Retrieval: a low-rank
residual of frozen embeddings, for queries alone (the index stays) or for both sides, with negatives from the
whole corpus. A begins at zero, so that at the start nothing is changed. Vectors of length 1 are scaled to it
again.

Left open here as in their abstract, and chosen: negatives are the K nearest documents that are not known to
be relevant, found anew before each epoch with the adapters as they are; the loss is InfoNCE over a positive
and these, or with a margin the mean of max(0, margin - s_positive + s_negative) over them.

Letters: Q queries, N documents, D width, R rank, P positives of a query, K negatives, B batch.
"""

import dataclasses
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from corpora.tables import DataError
from dual_encoder.towers import l2_normalize
from index import exact

SIDES = {"query": ("query",), "both": ("query", "document")}
Adapters = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    rank: R.
    sides: "query", or "both".
    negatives: K.
    epochs: passes over the queries that have a positive.
    batch_size: B.
    rate: Adam's learning rate.
    temperature: of InfoNCE.
    margin: of the triplet loss in its place; None for InfoNCE.
    seed: of A's and the order's.
    """

    rank: int
    sides: str = "query"
    negatives: int = 16
    epochs: int = 10
    batch_size: int = 256
    rate: float = 1e-3
    temperature: float = 0.05
    margin: float | None = None
    seed: int = 0

    def __post_init__(self):
        for field in ("rank", "negatives", "epochs", "batch_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
        if self.sides not in SIDES:
            raise ValueError(f"sides is {self.sides!r}; allowed: {', '.join(SIDES)}")


def adapted(adapters: Adapters, side: str, x_ND: jax.Array, *, unit: bool) -> jax.Array:
    """Returns the vectors [N, D] of a side, as they are where the side has no adapter."""
    if side not in adapters:
        return jnp.asarray(x_ND)
    y_ND = x_ND + (x_ND @ adapters[side]["b"].T) @ adapters[side]["a"].T
    return l2_normalize(y_ND) if unit else y_ND


def init(settings: Settings, width: int) -> Adapters:
    """Returns adapters that change nothing.

    Raises:
      ValueError: the rank is above D.
    """
    if settings.rank > width:
        raise ValueError(f"rank is {settings.rank}; allowed: 1 to {width}, the width of the vectors")
    keys = jax.random.split(jax.random.key(settings.seed), len(SIDES[settings.sides]))
    return {
        side: {
            "a": jnp.zeros((width, settings.rank)),
            "b": jax.random.normal(key, (settings.rank, width)) / jnp.sqrt(width),
        }
        for side, key in zip(SIDES[settings.sides], keys, strict=True)
    }


def train(
    query_QD: np.ndarray,
    document_ND: np.ndarray,
    positives_QP: np.ndarray,
    settings: Settings,
    *,
    unit: bool,
    report: Callable[[int, Adapters], None] | None = None,
) -> Adapters:
    """Returns trained adapters.

    Args:
      query_QD: float32, vectors of training queries.
      document_ND: float32, of the whole corpus.
      positives_QP: int32, rows of the documents that are relevant to each; -1 for none.
      settings: see there.
      unit: whether vectors have length 1, and keep it.
      report: is told after each epoch how many are done, and the adapters.

    Raises:
      ValueError: no query has a positive, or there are no documents but positives.
    """
    positives_QP = positives_QP[:, : max(1, int((positives_QP >= 0).sum(axis=1).max(initial=0)))]
    asked_Q = np.flatnonzero(positives_QP[:, 0] >= 0)
    if not len(asked_Q):
        raise ValueError("no query has a relevant document that has a vector; allowed: one or more")
    adapters = init(settings, query_QD.shape[1])
    optimizer = optax.adam(settings.rate)
    state = optimizer.init(adapters)
    size = min(settings.batch_size, len(asked_Q))
    rng = np.random.default_rng(settings.seed)

    def loss(adapters: Adapters, query_BD, positive_BD, negative_BKD, there_BK) -> jax.Array:
        query_BD = adapted(adapters, "query", query_BD, unit=unit)
        listed_BCD = jnp.concatenate([positive_BD[:, None], negative_BKD], axis=1)
        flat = adapted(adapters, "document", listed_BCD.reshape(-1, listed_BCD.shape[-1]), unit=unit)
        scores_BC = jnp.einsum("bd,bcd->bc", query_BD, flat.reshape(listed_BCD.shape))
        return of_scores(scores_BC, there_BK, settings)

    @jax.jit
    def step(adapters, state, *arrays):
        updates, state = optimizer.update(jax.grad(loss)(adapters, *arrays), state)
        return optax.apply_updates(adapters, updates), state

    for epoch in range(settings.epochs):
        negatives_QK = _nearest(adapters, query_QD, document_ND, positives_QP, settings.negatives, unit)
        if not (negatives_QK[asked_Q] >= 0).any():
            raise ValueError("every document is relevant to every query; there is nothing to learn from")
        order = rng.permutation(asked_Q)
        for start in range(0, len(order), size):
            rows_B = np.resize(order[start : start + size], size)  # the last batch repeats some
            drawn_B = _one_of(positives_QP[rows_B], rng)
            negatives_BK = negatives_QK[rows_B]
            adapters, state = step(
                adapters,
                state,
                query_QD[rows_B],
                document_ND[drawn_B],
                document_ND[np.maximum(negatives_BK, 0)],
                negatives_BK >= 0,
            )
        if report:
            report(epoch + 1, adapters)
    return adapters


def of_scores(scores_BC: jax.Array, there_BK: jax.Array, settings: Settings) -> jax.Array:
    """Returns the loss [] of scores whose first column is the positive's; of the others, those that are there
    count."""
    positive_B1, negative_BK = scores_BC[:, :1], scores_BC[:, 1:]
    if settings.margin is None:
        others_BK = jnp.where(there_BK, negative_BK / settings.temperature, -jnp.inf)
        logs_BC = jax.nn.log_softmax(jnp.concatenate([positive_B1 / settings.temperature, others_BK], axis=1))
        return -logs_BC[:, 0].mean()
    apart_BK = jnp.maximum(settings.margin - positive_B1 + negative_BK, 0)
    return jnp.where(there_BK, apart_BK, 0).sum() / jnp.maximum(there_BK.sum(), 1)


def arrays(adapters: Adapters) -> Mapping[str, np.ndarray]:
    """Returns the matrices by name, such as `query/a`, for `numpy.savez`."""
    return {f"{side}/{name}": np.asarray(x) for side, of in adapters.items() for name, x in of.items()}


def load(file: str | Path, width: int) -> Adapters:
    """Reads what `numpy.savez` wrote of `arrays`.

    Raises:
      DataError: there is no such file, or it has no adapters of vectors of this width.
    """
    try:
        with np.load(file) as saved:
            found = {
                side: {name: jnp.asarray(saved[f"{side}/{name}"]) for name in ("a", "b")}
                for side in SIDES["both"]
                if f"{side}/a" in saved
            }
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is no file of adapters: {error}") from None
    shapes = [(of["a"].shape, of["b"].shape[::-1]) for of in found.values()]
    if not shapes or any(a != b or a[:1] != (width,) for a, b in shapes):
        raise DataError(f"{file} has no adapters of vectors of {width} numbers; it has {shapes or 'none'}")
    return found


def _nearest(
    adapters: Adapters,
    query_QD: np.ndarray,
    document_ND: np.ndarray,
    positives_QP: np.ndarray,
    count: int,
    unit: bool,
) -> np.ndarray:
    """Returns the K nearest rows int32 [Q, K] that are no positives, -1 where there are fewer."""
    index = exact.build(np.asarray(adapted(adapters, "document", document_ND, unit=unit)))
    depth = min(count + positives_QP.shape[1], len(document_ND))
    _, rows_QK = exact.search(index, np.asarray(adapted(adapters, "query", query_QD, unit=unit)), depth)
    rows_QK = np.asarray(rows_QK)
    known_QK = (rows_QK[:, :, None] == positives_QP[:, None, :]).any(axis=2) | (rows_QK < 0)
    others_first = np.argsort(known_QK, axis=1, kind="stable")
    return np.take_along_axis(np.where(known_QK, -1, rows_QK), others_first, axis=1)[:, :count]


def _one_of(positives_BP: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns one positive of each query; they stand first, before -1."""
    count_B = (positives_BP >= 0).sum(axis=1)
    return positives_BP[np.arange(len(positives_BP)), rng.integers(0, count_B)]
