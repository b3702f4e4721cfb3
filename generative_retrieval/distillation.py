"""Distillation from a ranking: the student is to think of a teacher's best documents as the teacher does.

    task=dict(
        name="generative_retrieval.distillation.Distilled",
        spelling=dict(name="generative_retrieval.task.SequenceToSequence", ...),
        teacher=dict(name="generative_retrieval.distillation.dense", run="runs/dual", count=16),
        objective=dict(name="training.ranking.list_net", temperature=0.05),
    )

A document's score by the student is log p of its id. Li et al. (2024), "Distillation Enhanced Generative
Retrieval", train so from a cross-encoder's lists; here the teacher is any ranking, such as a dual encoder's,
and the losses are those of `training.ranking`, under their own names.

Letters: B queries, C candidates of each, T symbols of an id, V symbols, Q texts, R vectors, U documents.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corpora.tables import DataError
from dual_encoder.retriever import load_indexed
from generative_retrieval import exhaustive, indexing, speller
from generative_retrieval import task as tasks
from generative_retrieval.indexing import Examples, Source
from generative_retrieval.speller import Speller
from index import exact, passages
from training import ranking
from training.task import Batch, Metrics, Others

Teacher = Callable[[Source, Sequence[str]], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Distilled(tasks.AroundSpelling):
    """A task of spelling, and a loss of the student's scores of each text's candidates.

        loss = loss of spelling + weight * objective

    The candidates' scores are those of a search, without dropout: the query is read once more, and their ids
    are spelled side by side behind it, C T positions of the decoder for each row.

    Attributes:
      spelling: with all its options.
      teacher: from texts to their candidates, such as `dense`, waiting for both its arguments.
      objective: `(student [B, C], teacher [B, C], *, where) -> loss`, one of `training.ranking`.
      weight: of it.

    Raises:
      ValueError: weight is not positive.
    """

    spelling: tasks.SequenceToSequence
    teacher: Teacher
    objective: Callable[..., jax.Array] = ranking.list_net
    weight: float = 1.0

    def __post_init__(self):
        if not self.weight > 0:
            raise ValueError(f"weight is {self.weight}; it must be positive")

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
        """Expects the arrays of `SequenceToSequence`, and those of `batches`."""
        loss, (state, metrics) = self.spelling.loss(params, state, batch, rng, train=train, others=others)
        queries = speller.of(self.model, self.variables(params, state), batch)
        student_BC = log_likelihood(queries, batch["candidate_targets"], batch["candidate_mask"])
        apart = self.objective(student_BC, batch["teacher_scores"], where=batch["candidates"] >= 0)
        metrics = {**metrics, "spelling": loss, "distillation": apart}
        return loss + self.weight * apart, (state, metrics)

    def batches(
        self,
        make_batch: Callable[..., indexing.Batch],
        *,
        source: Source,
        examples: Sequence[Examples],
        symbols_NT: np.ndarray,
        seed: int,
    ) -> Callable[..., indexing.Batch]:
        """Returns `make_batch` with the candidates of each text: `candidates` int32 [B, C], rows of
        documents, -1 for none; `teacher_scores` float32 [B, C]; and of their ids `candidate_targets` and
        `candidate_mask`, int32 [B, C, T].

        Texts that are no queries, such as the first tokens of documents, have no candidates.
        """
        del seed  # nothing is drawn
        of_texts = {text: None for held in examples for text in held.texts or ()}
        texts = list(of_texts)
        rows_QC, scores_QC = self.teacher(source, texts)
        number = {text: at for at, text in enumerate(texts)}
        none = len(texts)
        of_example = np.concatenate(
            [
                np.full(len(held), none) if held.texts is None else [number[text] for text in held.texts]
                for held in examples
            ]
        ).astype(np.int64)
        rows_QC = np.pad(rows_QC, ((0, 1), (0, 0)), constant_values=-1)
        scores_QC = np.pad(scores_QC, ((0, 1), (0, 0)))

        def batch(examples_B: np.ndarray, step: int, part: slice | np.ndarray = slice(None)):
            mine_B = of_example[np.asarray(examples_B)[part]]
            rows_BC = rows_QC[mine_B]
            ids = exhaustive.targets(symbols_NT[np.maximum(rows_BC, 0)])
            return {
                **make_batch(examples_B, step, part),
                "candidates": rows_BC,
                "teacher_scores": scores_QC[mine_B],
                **{f"candidate_{name.removeprefix('target_')}": x for name, x in ids.items()},
            }

        return batch


def log_likelihood(queries: Speller, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns log p(id | query) of C ids of each query, float32 [B, C], spelled side by side.

    Args:
      queries: the model with its B queries.
      targets: int32 [B, C, T]; read alike, whatever is under the mask.
      mask: [B, C, T], which symbols an id has.
    """
    batch_size, count, length = targets.shape
    logits_BV, cache = speller.begin(queries, length, count)
    logits_BCV = jnp.broadcast_to(logits_BV[:, None], (batch_size, count, logits_BV.shape[-1]))
    itself_BC = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[None], (batch_size, count))
    lineage_BCT = speller.lineage(batch_size, length, count) + itself_BC[:, :, None]

    def step(cache: Any, at: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        depth, read_BC, next_BC = at
        seen_BCM = speller.visible(lineage_BCT, depth)
        logits_BCV, cache = queries.step(read_BC, depth, seen_BCM, cache)
        return cache, _log_p(logits_BCV, next_BC)

    targets_TBC = jnp.moveaxis(targets, 2, 0)
    depths_T = jnp.arange(1, length, dtype=jnp.int32)
    _, later_TBC = jax.lax.scan(step, cache, (depths_T, targets_TBC[:-1], targets_TBC[1:]))
    log_p_TBC = jnp.concatenate([_log_p(logits_BCV, targets_TBC[0])[None], later_TBC])
    return jnp.where(jnp.moveaxis(mask, 2, 0).astype(bool), log_p_TBC, 0.0).sum(axis=0)


def _log_p(logits_BCV: jax.Array, symbols_BC: jax.Array) -> jax.Array:
    log_p_BCV = jax.nn.log_softmax(logits_BCV.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(log_p_BCV, symbols_BC[:, :, None], axis=2)[:, :, 0]


def dense(source: Source, texts: Sequence[str], *, run: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The documents that a trained dual encoder ranks highest for each text.

    Args:
      source: whose documents are indexed; others are no candidates.
      texts: Q of them.
      run: of the dual encoder, evaluated, over the same documents and perhaps others.
      count: C.

    Returns:
      rows of documents int32 [Q, C], -1 for none, and scores float32 [Q, C].

    Raises:
      ValueError: count is below 2: one candidate is no ranking.
      DataError: the run has no vectors, or they are of another checkpoint than its best one; or an indexed
        document has none.
      CheckpointError: it has no checkpoint.
    """
    if count < 2:
        raise ValueError(f"count is {count}; it must be at least 2")
    trained, store = load_indexed(run)
    row_of = {source.doc_ids[row]: row for row in source.rows.tolist()}
    without = set(row_of) - set(store.ids)
    if without:
        raise DataError(
            f"{run} has no vectors of {len(without):,} of {len(row_of):,} documents, such as "
            f"{min(without)!r}; allowed: a run over a collection that has them all"
        )
    vectors_QD, _ = trained.queries(list(texts))
    document_R = np.array([row_of.get(doc_id, -1) for doc_id in store.ids], np.int32)[store.text_of_row]
    kept = np.flatnonzero(document_R >= 0)
    kept = kept[np.argsort(document_R[kept], kind="stable")]  # in the order of our documents
    documents_U, place_of_row = np.unique(document_R[kept], return_inverse=True)
    index = exact.build(store.vectors()[kept])
    scores_QC, places_QC = passages.search(
        lambda depth: exact.search(index, vectors_QD, depth), place_of_row, count
    )
    found_QC = np.asarray(places_QC) >= 0
    rows_QC = np.where(found_QC, documents_U[np.maximum(places_QC, 0)], -1)
    return rows_QC.astype(np.int32), np.where(found_QC, scores_QC, 0.0).astype(np.float32)
