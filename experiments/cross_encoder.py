"""How a cross-encoder's experiment is put together from its config; a config names `Experiment` as `family`.

The fields of such a config, besides those of experiments.opening:

    data        spec of a collection, such as corpora.sources.beir_folder.load
    text        how query and document become one row, see cross_encoder.pairs.PairSettings
    batch       see experiments.cross_encoder_settings.Batch
    task        spec of the Task, cross_encoder.task.Ranking, with its model
    evaluation  see experiments.cross_encoder_settings.Evaluation
    paper       optional: what a paper reports, see experiments.collected
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from corpora import batches
from corpora import tokenizer as tokenizers
from corpora.dataset import Dataset
from cross_encoder import pairs as rows
from cross_encoder.scoring import PairScorer
from cross_encoder.task import Ranking
from eval import measures, results, runs
from experiments import cross_encoder_evaluation, mining, opening, settings
from experiments.cli import UsageError
from experiments.cross_encoder_settings import Batch, Evaluation
from index import lexical
from training import distributed, loop, mesh
from training.build import build, fill
from training.profiling import Profile
from training.task import TrainState

FIELDS = (
    "seed", "data", "tokenizer", "text", "batch", "task", "optimizer", "mesh", "init_from", "schedule",
    "evaluation",
)  # fmt: skip


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
        self.task = build(config["task"], "config.task")
        if not isinstance(self.task, Ranking):
            raise UsageError(
                f"config.task is {config['task'].get('name')!r}; allowed: cross_encoder.task.Ranking"
            )
        self.text = fill(rows.PairSettings, config["text"], "config.text")
        self.evaluation = settings.evaluation(config["evaluation"], "config.evaluation", Evaluation)
        self._batch = fill(Batch, build(config["batch"], "config.batch"), "config.batch")
        self.training = opening.training(
            config,
            run_dir,
            rows=self._batch.batch_size,
            measured=[f"dev/{name}" for name in self.evaluation.dev_measures],
            said_by="config.evaluation.dev_measures",
        )
        self._tokenizer_spec = build(config["tokenizer"], "config.tokenizer")
        with distributed.leader_first("preparing the data"):
            self.dataset: Dataset = build(config["data"], "config.data")
        print(self.dataset.summary(), flush=True)
        for split in (self.evaluation.train_split, self.evaluation.dev_split, self.evaluation.test_split):
            self.dataset.split(split)
        of = self.training
        self.scorer = PairScorer(
            self.task.model, length=self.text.length, mesh=of.mesh, activations=of.layout.activations
        )

    @functools.cached_property
    def pairs(self) -> batches.Pairs:
        return batches.training_pairs(self.dataset, self.evaluation.train_split)

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return opening.tokenizer(
            self.run_dir, self._tokenizer_spec, self._training_texts, opening.vocab_sizes(self.config["task"])
        )

    def train(self, *, profile: Profile | None = None) -> TrainState:
        """Trains from the run's latest checkpoint, or from the start; see training.loop.train."""
        of, pairs = self.training, self.pairs
        queries = [self.dataset.queries[query_id] for query_id in pairs.query_ids]
        table = self.text.table(self.tokenizer, queries, self.dataset.documents)
        order = batches.Order(len(pairs.query_rows), self.config["seed"])

        def stream(first_step: int, in_use: Mapping[str, np.ndarray]) -> Iterator[Mapping[str, np.ndarray]]:
            make_batch = rows.batches(
                pairs,
                table,
                length=self.text.length,
                negatives=in_use[mining.NEGATIVES],
                negatives_per_query=self._batch.negatives_per_query,
                seed=self.config["seed"],
            )
            return batches.stream(
                make_batch,
                order,
                batch_size=self._batch.batch_size,
                first_step=first_step,
                total_steps=of.schedule.total_steps,
                part=mesh.held_rows(self._batch.batch_size, of.mesh),
            )

        def describe(step: int) -> str:
            ids = [pairs.query_ids[row] for row in pairs.query_rows[order.rows(step, self._batch.batch_size)]]
            return f"queries {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}"

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
            tables={mining.NEGATIVES: self._negatives()},
            initialize=opening.initialize(of.init_from, self.run_dir),
            describe_batch=describe,
            profile=profile,
        )

    def evaluate(self) -> results.Results:
        """See experiments.cross_encoder_evaluation."""
        return cross_encoder_evaluation.evaluate(self)

    def dev_evaluator(self) -> loop.Evaluator:
        """Returns the evaluator of `dev/<measure>`: the best documents that BM25 finds, in the order of their
        scores. Documents further down are not found."""
        of, qrels = self.evaluation, self.dataset.split(self.evaluation.dev_split)
        titles, texts = self.dataset.titles_and_texts()
        queries = [self.dataset.queries[query_id] for query_id in qrels]
        bm25 = lexical.BM25.build(texts, titles=titles, **of.dev_bm25)
        rows_QM = bm25.search(queries, of.dev_depth + of.drop_same_id)[1]
        documents = np.unique(rows_QM[rows_QM >= 0])
        table = self.text.table(self.tokenizer, queries, self.dataset.documents.read(documents.tolist()))
        places_QM = np.where(rows_QM >= 0, np.searchsorted(documents, rows_QM), -1)

        def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
            variables = self.scorer.place(self.task.variables(state.eval_params, state.state))
            scores_QM = self.scorer(variables, table, np.arange(len(queries)), places_QM, title="scoring dev")
            run = runs.from_rows(
                list(qrels), self.dataset.doc_ids, scores_QM, rows_QM, drop_same_id=of.drop_same_id
            )
            means = measures.means(measures.evaluate(qrels, run, of.dev_measures))
            for name, value in means.items():
                yield f"dev/{name}", value

        return evaluate

    def _negatives(self) -> np.ndarray:
        def mine() -> np.ndarray:
            found, drop = self._batch.negatives(self.dataset, self.pairs), self.evaluation.drop_same_id
            return mining.told(found, self.run_dir, 0, self.dataset, self.pairs, drop_same_id=drop)

        return mining.table(self.run_dir, mining.NEGATIVES, mine, "mining negatives")

    def _training_texts(self) -> Iterator[str]:
        for document in self.dataset.documents.read(np.unique(self.pairs.document_rows)):
            yield document.title
            yield document.text
        for query_id in self.pairs.query_ids:
            yield self.dataset.queries[query_id]
