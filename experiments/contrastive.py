"""How a dual-encoder experiment is put together from its config; a config names `Experiment` as its `family`.

The fields of such a config:

    seed        of initialization, dropout and the order of the data
    data        spec of a collection, such as corpora.sources.python_functions.load
    tokenizer   spec of a tokenizer: loaded, or trained on the texts of the training split
    text        lengths and framing, see corpora.tokens.TextSettings
    batch       see experiments.settings.Batch
    task        spec of the Task, with model and objective
    optimizer   spec of an optax transformation
    mesh        how devices are arranged and what lies where on them, see training.mesh.Layout
    init_from   a run, or a published encoder's folder, whose parameters are taken to begin with, see
                experiments.settings.InitFrom
    schedule    see training.loop.Schedule
    evaluation  see experiments.settings.Evaluation
    paper       optional: what a paper reports, its title and numbers by system and measure, see
                experiments.collected
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from corpora import batches, tokens
from corpora import tokenizer as tokenizers
from corpora.dataset import Dataset
from corpora.grouped_order import GroupedOrder
from dual_encoder.derived import Sizes
from dual_encoder.encoding import Encoder
from dual_encoder.negative_filters import Mined
from dual_encoder.retriever import SYSTEMS, Retriever
from eval import measures, results, runs
from experiments import evaluation, mining, opening, settings, widths
from experiments.cli import UsageError
from experiments.searching import Searching
from experiments.settings import deepest
from index import exact, passages
from training import distributed, loop, mesh
from training.build import build, fill
from training.profiling import Profile
from training.start import Initialize
from training.task import TrainState

_FIELDS = (
    "seed", "data", "tokenizer", "text", "batch", "task", "optimizer", "mesh", "init_from", "schedule",
    "evaluation",
)  # fmt: skip
# Tables, by query: mined documents int32 [queries, M], and what a teacher says of them and of the positives.
NEGATIVES, TEACHER = mining.NEGATIVES, batches.Teacher("teacher_positives", "teacher_negatives")
TARGETS = "targets"  # vectors that those of queries are to be like, float32 [queries, D]


def _open(run_dir: str | Path, config: Mapping[str, Any], *, k: int, **options: Any) -> Retriever:
    del config, k  # it reads its own, and finds any number
    return Retriever.load(run_dir, **options)


class Experiment:
    """A config's objects. Texts are tokenized when they are first asked for.

    Args:
      config: as a plain dict.
      run_dir: where the tokenizer, checkpoints and results go.

    Raises:
      SpecError, UsageError, DataError: what a config names does not exist or is malformed.
    """

    searching = Searching(SYSTEMS, _open, options=("adapter",))

    def __init__(self, config: Mapping[str, Any], run_dir: Path):
        opening.check_fields(config, _FIELDS)
        self.config, self.run_dir = config, run_dir
        # Everything that a config can get wrong comes before the first slow step.
        self.task = build(config["task"], "config.task")
        self.text = fill(tokens.TextSettings, config["text"], "config.text")
        self.evaluation = settings.evaluation(config["evaluation"], "config.evaluation")
        if self.evaluation.widths or self.evaluation.funnel:
            widths.check(self.evaluation, widths.of_vectors(self.task.model))
        self._batch = fill(settings.Batch, build(config["batch"], "config.batch"), "config.batch")
        settings.check_read(self._batch, self.task.reads)
        self._training = opening.training(
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
        pairs = len(self.pairs.query_rows)
        if self._batch.neighbors > pairs:
            raise UsageError(
                f"config.batch.neighbors is {self._batch.neighbors}; there are only {pairs} training pairs"
            )
        if self._batch.batch_size > pairs:
            print(
                f"config.batch.batch_size, {self._batch.batch_size:,}, is above the {pairs:,} "
                "training pairs: examples repeat within a batch, and count as no negatives of each other",
                flush=True,
            )
        of = self._training
        self.encoder = Encoder(self.task.model, mesh=of.mesh, activations=of.layout.activations)

    @functools.cached_property
    def pairs(self) -> batches.Pairs:
        judged = batches.training_pairs(self.dataset, self.evaluation.train_split)
        return judged if self._batch.pairs is None else self._batch.pairs(self.dataset, judged)

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return opening.tokenizer(
            self.run_dir, self._tokenizer_spec, self._training_texts, opening.vocab_sizes(self.config["task"])
        )

    @functools.cached_property
    def document_tokens(self) -> tokens.PassageTable:
        return self.text.passages(self.tokenizer, self.dataset.documents)

    def query_tokens(self, query_ids: list[str]) -> tokens.TokenTable:
        return self.text.queries(self.tokenizer, [self.dataset.queries[query_id] for query_id in query_ids])

    def train(self, *, profile: Profile | None = None) -> TrainState:
        """Trains from the run's latest checkpoint, or from the start; see training.loop.train."""
        query_tokens = self.query_tokens(self.pairs.query_ids)
        groups = self._groups()
        order = self._order(query_tokens, groups)

        def stream(first_step: int, in_use: Mapping[str, np.ndarray]) -> Iterator[Mapping[str, np.ndarray]]:
            make_batch = batches.contrastive(
                self.pairs,
                query_tokens,
                self.document_tokens,
                query_length=self.text.query_length,
                document_length=self.text.document_length,
                negatives=in_use.get(NEGATIVES),
                negatives_per_query=self._batch.negatives_per_query,
                teacher=self._teacher(in_use),
                targets=in_use.get(TARGETS),
                groups=groups,
                margin_bins=self._batch.margin_bins,
                seed=self.config["seed"],
            )
            return batches.stream(
                make_batch,
                order,
                batch_size=self._batch.batch_size,
                first_step=first_step,
                total_steps=self._training.schedule.total_steps,
                part=mesh.held_rows(self._batch.batch_size, self._training.mesh),
            )

        def describe(step: int) -> str:
            rows = self.pairs.query_rows[order.rows(step, self._batch.batch_size)]
            ids = [self.pairs.query_ids[row] for row in rows[:5]]
            return f"queries {', '.join(ids)}{', ...' if len(rows) > 5 else ''}"

        task = self.task
        if hasattr(task, "sized"):
            parts = mesh.batch_parts(self._training.mesh)
            count = 0 if groups is None else int(groups.max()) + 1
            sizes = Sizes(
                len(self.document_tokens),
                parts,
                count,
                one_group=self._batch.group_rows == self._batch.batch_size,
                doc_ids=self.dataset.doc_ids,
                document_of_row=self.document_tokens.document_of_row,
            )
            task = task.sized(sizes)
        return loop.train(
            task,
            self._training.optimizer,
            stream,
            self._training.schedule,
            self.run_dir,
            seed=self.config["seed"],
            mesh=self._training.mesh,
            layout=self._training.layout,
            evaluators=[self.dev_evaluator()],
            hooks=[_Refresh(self, self._batch, query_tokens)] if self._batch.refresh_every else [],
            tables=self._tables(),
            initialize=self._initialize(task),
            describe_batch=describe,
            profile=profile,
        )

    def _initialize(self, task: Any) -> Initialize | None:
        """Returns what `init_from` says, and then the beginning of a Task that has one, see Derived."""
        take = opening.initialize(self._training.init_from, self.run_dir)
        if not hasattr(task, "begin"):
            return take

        def encode(variables: Any) -> tuple[np.ndarray, np.ndarray]:
            placed, length = self.encoder.place(variables), self.text.document_length
            vectors_RD = self.encoder.documents(
                placed, self.document_tokens, length, title="encoding the corpus"
            )
            return vectors_RD, self.document_tokens.document_of_row

        def begin(params: Any, state: Any) -> tuple[Any, Any]:
            params, state = (params, state) if take is None else take(params, state)
            return params, task.begin(params, state, encode)

        return begin

    def evaluate(self) -> results.Results:
        """See experiments.evaluation."""
        return evaluation.evaluate(self)

    def dev_evaluator(self) -> loop.Evaluator:
        """Returns the evaluator of `dev/<measure>`: dev queries against the whole corpus."""
        qrels = self.dataset.split(self.evaluation.dev_split)
        names = self.evaluation.dev_measures
        depth = deepest(names)
        query_tokens = self.query_tokens(list(qrels))

        def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
            variables = self.encoder.place(self.task.variables(state.eval_params, state.state))
            index = self.index(variables, "encoding for dev")
            run = self.search(index, variables, list(qrels), query_tokens, depth)
            for name, value in measures.means(measures.evaluate(qrels, run, names)).items():
                yield f"dev/{name}", value

        return evaluate

    def search(
        self,
        index: exact.ExactIndex,
        variables: Any,
        query_ids: list[str],
        query_tokens: tokens.TokenTable,
        k: int,
    ) -> measures.Run:
        """Returns the run of the dual encoder with the given variables."""
        drop_same_id = self.evaluation.drop_same_id
        found = self.search_rows(index, variables, query_tokens, k + drop_same_id)
        return runs.from_rows(query_ids, self.dataset.doc_ids, *found, drop_same_id=drop_same_id)

    def search_rows(
        self, index: exact.ExactIndex, variables: Any, query_tokens: tokens.TokenTable, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores [Q, k] and document rows [Q, k] of the k best documents of each query."""
        vectors_QD = self.encoder.queries(variables, query_tokens, self.text.query_length)
        return passages.search(
            lambda depth: exact.search(index, vectors_QD, depth), self.document_tokens.document_of_row, k
        )

    def index(self, variables: Any, title: str) -> exact.ExactIndex:
        """Encodes and indexes the corpus; `title` names the work where progress is shown."""
        length = self.text.document_length
        return exact.build(self.encoder.documents(variables, self.document_tokens, length, title=title))

    def _order(
        self, query_tokens: tokens.TokenTable, groups: np.ndarray | None
    ) -> batches.Order | GroupedOrder:
        if self._batch.group_rows:
            of, seed = self._batch, self.config["seed"]
            try:
                return GroupedOrder(groups, seed, of.group_rows, weights=of.group_weights)
            except ValueError as error:
                raise UsageError(f"config.batch: {error}") from None
        return batches.Order(
            len(self.pairs.query_rows),
            self.config["seed"],
            self._batch.neighbors,
            length_window=self._batch.length_window,
            lengths=batches.example_lengths(self.pairs, query_tokens, self.document_tokens),
        )

    def _groups(self) -> np.ndarray | None:
        """Returns the group int32 [examples] of each example, found once a run, or None."""
        if self._batch.groups is None:
            return None
        return self._table("groups", lambda: self._batch.groups(self.dataset, self.pairs), "grouping queries")

    def _teacher(self, in_use: Mapping[str, np.ndarray]) -> batches.Teacher | None:
        if self._batch.teacher is None:
            return None
        return batches.Teacher(in_use[TEACHER.positives], in_use.get(TEACHER.negatives))

    def _tables(self) -> dict[str, np.ndarray]:
        """Makes the tables that `batch.negatives`, `teacher` and `targets` ask for, once a run."""
        found = {}
        if self._batch.negatives_per_query:
            mine = lambda: self.told(self._batch.negatives(self.dataset, self.pairs), 0)
            found[NEGATIVES] = self._table(NEGATIVES, mine, "mining negatives")
        if self._batch.teacher is not None:
            score = lambda: self.scored(self.pairs.positives)
            found[TEACHER.positives] = self._table(TEACHER.positives, score, "scoring positives")
            if NEGATIVES in found:
                score = lambda: self.scored(found[NEGATIVES])
                found[TEACHER.negatives] = self._table(TEACHER.negatives, score, "scoring negatives")
        if self._batch.targets is not None:
            encode = lambda: self._batch.targets(self.dataset, self.pairs.query_ids)
            found[TARGETS] = self._table(TARGETS, encode, "encoding targets")
        return found

    def _table(self, name: str, make: Callable[[], np.ndarray], title: str) -> np.ndarray:
        return mining.table(self.run_dir, name, make, title)

    def scored(self, rows_QM: np.ndarray) -> np.ndarray:
        """Returns the teacher's scores float32 [Q, M] of documents of the training queries."""
        return self._batch.teacher(self.dataset, self.pairs.query_ids, rows_QM)

    def told(self, mined: Mined, step: int) -> np.ndarray:
        """Returns the mined documents int32 [Q, M], and says what became of the others; see mining.told."""
        drop = self.evaluation.drop_same_id
        return mining.told(mined, self.run_dir, step, self.dataset, self.pairs, drop_same_id=drop)

    def _training_texts(self) -> Iterator[str]:
        for document in self.dataset.documents.read(np.unique(self.pairs.document_rows)):
            yield document.title
            yield document.text
        for query_id in self.pairs.query_ids:
            yield self.dataset.queries[query_id]


class _Refresh:
    """A hook: the hard negatives of training queries, mined anew with the model as it is."""

    def __init__(self, experiment: Experiment, batch: settings.Batch, query_tokens: tokens.TokenTable):
        self._experiment, self._batch, self._query_tokens = experiment, batch, query_tokens
        self.every = batch.refresh_every

    def __call__(self, state: TrainState) -> dict[str, np.ndarray]:
        experiment = self._experiment
        variables = experiment.encoder.place(experiment.task.variables(state.params, state.state))
        index = experiment.index(variables, "encoding for negatives")

        def search(k: int) -> np.ndarray:
            return experiment.search_rows(index, variables, self._query_tokens, k)[1]

        mined = self._batch.refresh(search, experiment.dataset, experiment.pairs)
        rows_QM = experiment.told(mined, int(state.step))
        if self._batch.teacher is None:
            return {NEGATIVES: rows_QM}
        return {NEGATIVES: rows_QM, TEACHER.negatives: experiment.scored(rows_QM)}
