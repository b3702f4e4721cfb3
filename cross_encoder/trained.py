"""A cross-encoder as a run left it, and as one who scores: a teacher, a judge, a reranker.

Letters: Q queries, M documents of each.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from corpora import tokenizer as tokenizers
from corpora.dataset import Dataset
from corpora.tables import DataError
from corpora.tokenizer import TOKENIZER_FILE, Tokenizer
from cross_encoder.pairs import PairSettings
from cross_encoder.scoring import PairScorer
from cross_encoder.task import Ranking, smallest_batch
from moe import leakage
from training import checkpoints, tables, trained
from training.build import SpecError, build, fill

SCORES = "scores"  # of a run directory: what its cross-encoder was asked


@dataclasses.dataclass(frozen=True)
class Trained:
    """Attributes:
    step: of the checkpoint.
    variables: of the model, on the scorer's devices: "params", and what else its layers have.
    scorer: the model.
    tokenizer: the run's.
    text: how texts become rows.
    """

    step: int
    variables: Any
    scorer: PairScorer
    tokenizer: Tokenizer
    text: PairSettings

    @classmethod
    def load(
        cls,
        run_dir: str | Path,
        config: Mapping[str, Any],
        *,
        batch_size: int = 256,
        allow_batch_dependence: bool = False,
    ) -> "Trained":
        """Opens a run's best checkpoint.

        Args:
          run_dir: the run.
          config: of the run.
          batch_size: pairs scored at a time.
          allow_batch_dependence: whether a pair's score may depend on those that are scored with it, see
            `moe.leakage`.

        Raises:
          CheckpointError: the run has no checkpoint.
          SpecError: the config names what is not there, or is of another family.
          DependenceError: scores depend on the batch, and it is not allowed.
        """
        task = task_of(config)
        if not allow_batch_dependence:
            leakage.refuse_batch(task.model, "score", "allow_batch_dependence (--allow_batch_dependence)")
        text = fill(PairSettings, config["text"], "config.text")
        scorer = PairScorer(task.model, length=text.length, batch_size=batch_size)
        tokenizer = tokenizers.load(str(Path(run_dir) / TOKENIZER_FILE))
        return cls.of_run(run_dir, task, scorer, tokenizer, text)

    @classmethod
    def of_run(
        cls, run_dir: str | Path, task: Ranking, scorer: PairScorer, tokenizer: Tokenizer, text: PairSettings
    ) -> "Trained":
        """Opens a run's best checkpoint where the rest of the run is open already."""
        step, params, state = trained.on_host(run_dir, task, smallest_batch(task.model))
        variables = scorer.place(jax.device_get(task.variables(params, state)))
        return cls(step, variables, scorer, tokenizer, text)

    def __call__(
        self,
        dataset: Dataset,
        query_ids: Sequence[str],
        rows_QM: np.ndarray,
        *,
        title: str = "scoring with the cross-encoder",
    ) -> np.ndarray:
        """Returns the score float32 [Q, M] of each query with its documents: rows of the collection, NaN
        where one is -1. Only documents that occur are read."""
        documents = np.unique(rows_QM[rows_QM >= 0])
        table = self.text.table(
            self.tokenizer,
            [dataset.queries[query_id] for query_id in query_ids],
            dataset.documents.read(documents.tolist()),
        )
        places_QM = np.where(rows_QM >= 0, np.searchsorted(documents, rows_QM), -1)
        return self.scorer(self.variables, table, np.arange(len(query_ids)), places_QM, title=title)


class Scorer:
    """A run's cross-encoder as a spec names it; opened when it is first asked.

        judge = dict(name="cross_encoder.trained.Scorer", run="runs/cross_encoder")

    Scores are log odds, see `cross_encoder.model`. They are kept in the run's `scores/`, so that what the
    same checkpoint is asked of the same queries and documents once more, by another seed of a student say,
    costs nothing.

    Args:
      run: the run directory.
      batch_size: pairs scored at a time.

    Raises:
      DataError: there is no run.
      SpecError: it is of another family.
      CheckpointError: it has no best checkpoint.
    """

    def __init__(self, run: str, batch_size: int = 256):
        self.run, self._batch_size = run, batch_size
        self._config = config_of(run)
        task_of(self._config)
        checkpoints.check_best(Path(run) / "checkpoints")

    @functools.cached_property
    def _trained(self) -> Trained:
        return Trained.load(self.run, self._config, batch_size=self._batch_size)

    def __call__(self, dataset: Dataset, query_ids: Sequence[str], rows_QM: np.ndarray) -> np.ndarray:
        """Returns float32 [Q, M], NaN where the row is -1, see `Trained`."""
        file = Path(self.run) / SCORES / f"{self._digest(dataset, query_ids, rows_QM)}.npy"
        if not file.exists():
            found = self._trained(dataset, query_ids, rows_QM, title=f"scoring with {self.run}")
            tables.save(file, found)
        return tables.load(file)

    def _digest(self, dataset: Dataset, query_ids: Sequence[str], rows_QM: np.ndarray) -> str:
        """What scores depend on: the checkpoint, the documents, the queries, and which pairs are asked."""
        best = (Path(self.run) / "checkpoints" / "best.json").read_text()
        queries = [dataset.queries[query_id] for query_id in query_ids]
        found = hashlib.sha256(json.dumps([best, dataset.corpus_hash, queries, rows_QM.shape]).encode())
        found.update(np.ascontiguousarray(rows_QM, "<i4"))
        return found.hexdigest()[:16]


def task_of(config: Mapping[str, Any]) -> Ranking:
    """Builds the Task of a run's config. Raises SpecError where it is no cross-encoder's."""
    task = build(config.get("task"), "config.task")
    if not isinstance(task, Ranking):
        raise SpecError(
            f"the run is of {config.get('family')}; allowed: a run of a cross-encoder, whose task is "
            "cross_encoder.task.Ranking"
        )
    return task


def config_of(run_dir: str | Path) -> dict[str, Any]:
    """Returns a run's config. Raises DataError where there is none."""
    file = Path(run_dir) / "config.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"no run in {run_dir!r}: {error}") from None
