"""How a query generator's experiment is put together from its config; a config names `Experiment` as its
`family`.

The fields of such a config, besides those of experiments.opening:

    data        spec of a collection, such as corpora.sources.beir_folder.load
    text        see generative_retrieval.query_generator.TextSettings
    batch       see experiments.settings.Rows
    task        generative_retrieval.task.SequenceToSequence, with its model
    evaluation  see experiments.query_generator_settings.Evaluation

It learns from the pairs of the training split alone, and so does the tokenizer.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from corpora import batches, tokens
from corpora import tokenizer as tokenizers
from corpora.dataset import Dataset
from eval import results
from experiments import opening, query_generator_evaluation, query_generator_settings, settings
from experiments.cli import UsageError
from generative_retrieval import query_generator
from generative_retrieval.query_generator import TextSettings
from generative_retrieval.task import SequenceToSequence
from language_model.scoring import perplexity
from moe import leakage
from training import distributed, loop, mesh
from training.activations import constrained
from training.build import build, fill
from training.profiling import Profile
from training.progress import Progress
from training.task import TrainState

FIELDS = (
    "seed", "data", "tokenizer", "text", "batch", "task", "optimizer", "mesh", "init_from", "schedule",
    "evaluation",
)  # fmt: skip
BEST = "dev/log_likelihood"  # the loop keeps the highest


class Experiment:
    """A config's objects. Texts are tokenized when they are first asked for.

    Args:
      config: as a plain dict.
      run_dir: where the tokenizer, checkpoints and results go.

    Raises:
      SpecError, UsageError, DataError: what a config names does not exist or is malformed.
    """

    def __init__(self, config: Mapping[str, Any], run_dir: Path):
        opening.check_fields(config, FIELDS)
        self.config, self.run_dir = config, run_dir
        # Everything that a config can get wrong comes before the first slow step.
        self.task = task_of(config)
        self.text = fill(TextSettings, config["text"], "config.text")
        self.batch = fill(settings.Rows, config["batch"], "config.batch")
        self.evaluation = query_generator_settings.evaluation(config["evaluation"], "config.evaluation")
        self.training = opening.training(config, run_dir, rows=self.batch.batch_size, measured=[BEST])
        try:
            mesh.check_rows(self.evaluation.batch_size, self.training.mesh)
        except ValueError as error:
            raise UsageError(f"config.evaluation: {error}") from None
        self._tokenizer_spec = build(config["tokenizer"], "config.tokenizer")
        with distributed.leader_first("preparing the data"):
            self.dataset: Dataset = build(config["data"], "config.data")
        print(self.dataset.summary(), flush=True)
        for split in (self.evaluation.train_split, self.evaluation.dev_split, self.evaluation.test_split):
            self.dataset.split(split)
        of = self.training
        score = constrained(self.task.score, of.mesh, of.layout.activations, all_used=False)
        # Whole on every device, so that every process has all rows.
        self._score = jax.jit(score, out_shardings=NamedSharding(of.mesh, PartitionSpec()))

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        sizes = opening.vocab_sizes(self.config["task"])
        made = opening.tokenizer(self.run_dir, self._tokenizer_spec, self._training_texts, sizes)
        query_generator.check_tokenizer(made)
        return made

    @functools.cached_property
    def document_tokens(self) -> tokens.PassageTable:
        return self.text.documents(self.tokenizer, self.dataset.documents)

    def pairs(self, split: str) -> batches.Pairs:
        """Returns the pairs of a split."""
        return batches.training_pairs(self.dataset, split)

    def train(self, *, profile: Profile | None = None) -> TrainState:
        """Trains from the run's latest checkpoint, or from the start; see training.loop.train."""
        of, pairs = self.training, self.pairs(self.evaluation.train_split)
        make_batch = self._batches(pairs)
        order = batches.Order(len(pairs.query_rows), self.config["seed"])

        def stream(first_step: int, in_use: Mapping[str, np.ndarray]) -> Iterator[Mapping[str, np.ndarray]]:
            del in_use  # there are no tables
            return batches.stream(
                make_batch,
                order,
                batch_size=self.batch.batch_size,
                first_step=first_step,
                total_steps=of.schedule.total_steps,
                part=mesh.held_rows(self.batch.batch_size, of.mesh),
            )

        def describe(step: int) -> str:
            rows = pairs.query_rows[order.rows(step, self.batch.batch_size)]
            ids = [pairs.query_ids[row] for row in rows[:5]]
            return f"queries {', '.join(ids)}{', ...' if len(rows) > 5 else ''}"

        return loop.train(
            self.task,
            of.optimizer,
            stream,
            of.schedule,
            self.run_dir,
            seed=self.config["seed"],
            mesh=of.mesh,
            layout=of.layout,
            evaluators=[self.dev_evaluator()],
            initialize=opening.initialize(of.init_from, self.run_dir),
            describe_batch=describe,
            profile=profile,
        )

    def evaluate(self) -> results.Results:
        """See experiments.query_generator_evaluation."""
        return query_generator_evaluation.evaluate(self)

    def dev_evaluator(self) -> loop.Evaluator:
        """Returns the evaluator of the pairs of dev: `dev/loss` in nats a subword, END included;
        `dev/log_likelihood`, its negative; and `dev/perplexity`."""
        pairs = self.pairs(self.evaluation.dev_split)

        def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
            found_N, words_N = self.score(state.eval_params, state.state, pairs, title="scoring dev")
            loss = -float(found_N.sum()) / int(words_N.sum())
            yield BEST, -loss
            yield "dev/loss", loss
            yield "dev/perplexity", perplexity(loss)

        return evaluate

    def score(
        self, params: Any, state: Any, pairs: batches.Pairs, *, title: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns log p(query | document) of each pair in nats, float64 [N], and the subwords of its query
        with its END, int64 [N].

        Args:
          params, state: the Task's, on the mesh.
          pairs: N.
          title: names the work where progress is shown.
        """
        size, devices = self.evaluation.batch_size, self.training.mesh
        make_batch = self._batches(pairs)
        count = len(pairs.query_rows)
        found_N, words_N = np.zeros(count), np.zeros(count, np.int64)
        progress = Progress(count, unit="pair", title=title)
        for start in range(0, count, size):
            rows_B = np.arange(start, min(start + size, count))
            batch = make_batch(np.pad(rows_B, (0, size - len(rows_B)), constant_values=-1), 0)
            with leakage.in_force(self.task.model, devices):
                found_B = self._score(params, state, mesh.shard_batch(batch, devices))
            found_N[rows_B] = np.asarray(found_B)[: len(rows_B)]
            words_N[rows_B] = batch["target_mask"].sum(axis=1)[: len(rows_B)]
            progress.update(start + len(rows_B))
        progress.close()
        return found_N, words_N

    def _batches(self, pairs: batches.Pairs):
        texts = [self.dataset.queries[query_id] for query_id in pairs.query_ids]
        return query_generator.batches(
            self.document_tokens,
            self.text.queries(self.tokenizer, texts),
            pairs.document_rows,
            pairs.query_rows,
            self.text,
        )

    def _training_texts(self) -> Iterator[str]:
        pairs = self.pairs(self.evaluation.train_split)
        for document in self.dataset.documents.read(np.unique(pairs.document_rows)):
            yield document.title
            yield document.text
        for query_id in pairs.query_ids:
            yield self.dataset.queries[query_id]


def task_of(config: Mapping[str, Any]) -> SequenceToSequence:
    """Builds the Task of a config. Raises UsageError where it is not one that writes text."""
    task = build(config.get("task"), "config.task")
    if not isinstance(task, SequenceToSequence):
        raise UsageError(
            f"config.task is {config['task'].get('name')!r}; allowed: "
            "generative_retrieval.task.SequenceToSequence"
        )
    return task
