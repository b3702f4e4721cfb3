"""How a language model's experiment is put together from its config; a config names `Experiment` as `family`.

The fields of such a config, besides those of experiments.opening:

    data        spec of collections, see language_model.domains
    batch       see experiments.language_settings.Batch
    task        spec of the Task, language_model.causal.Causal, with its model
    evaluation  see experiments.language_settings.Evaluation
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from corpora import batches
from corpora import tokenizer as tokenizers
from corpora.mixture_order import MixtureOrder, weights_of
from eval import results
from experiments import language_evaluation, opening
from experiments.cli import UsageError
from experiments.language_settings import Batch, Evaluation
from language_model import domains
from language_model.causal import Causal, batch_shapes
from language_model.domains import Chunks, Domains
from language_model.scoring import Scorer, perplexity
from moe.leakage import DependenceError
from training import distributed, loop, mesh
from training.build import build, fill
from training.profiling import Profile
from training.task import TrainState

FIELDS = (
    "seed", "data", "tokenizer", "batch", "task", "optimizer", "mesh", "init_from", "schedule", "evaluation",
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
        self.task = build(config["task"], "config.task")
        if not isinstance(self.task, Causal):
            raise UsageError(
                f"config.task is {config['task'].get('name')!r}; allowed: language_model.causal.Causal"
            )
        self.batch = fill(Batch, config["batch"], "config.batch")
        self.evaluation = fill(Evaluation, config["evaluation"], "config.evaluation")
        self.training = opening.training(config, run_dir, rows=self.batch.batch_size, measured=[BEST])
        try:
            self.scorer = Scorer(
                self.task,
                self.training.mesh,
                self.training.layout,
                batch_size=self.evaluation.batch_size,
                length=self.batch.length,
            )
        except ValueError as error:
            raise UsageError(f"config.evaluation: {error}") from None
        self._check_task()
        self._tokenizer_spec = build(config["tokenizer"], "config.tokenizer")
        with distributed.leader_first("preparing the data"):
            self.domains: Domains = build(config["data"], "config.data")
        if not isinstance(self.domains, Domains):
            raise UsageError(
                f"config.data is {config['data'].get('name')!r}; allowed: language_model.domains.held_out"
            )
        print(self.domains.summary(), flush=True)
        self._chunks: dict[str, Chunks] = {}

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return opening.tokenizer(
            self.run_dir, self._tokenizer_spec, self._training_texts, opening.vocab_sizes(self.config["task"])
        )

    def chunks(self, split: str) -> Chunks:
        """Returns the chunks of a split, tokenized when they are first asked for."""
        if split not in self._chunks:
            self._chunks[split] = domains.chunks(self.domains, split, self.tokenizer, self.batch.length)
        return self._chunks[split]

    def train(self, *, profile: Profile | None = None) -> TrainState:
        """Trains from the run's latest checkpoint, or from the start; see training.loop.train."""
        self.chunks("test")  # what it lacks is known before the training, not after
        of, chunks = self.training, self.chunks("train")
        try:
            order = MixtureOrder(
                chunks.sizes.tolist(),
                self.config["seed"],
                weights=weights_of(self.domains.weights, self.domains.names),
                domain_rows=self.batch.domain_rows,
            )
        except ValueError as error:
            raise UsageError(f"config.batch: {error}") from None
        self._say(chunks, order)
        make_batch = domains.batches(chunks, self.batch.length)

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
            rows = order.rows(step, self.batch.batch_size)[:5]
            names = self.domains.document_ids("train")
            ids = [names[document] for document in chunks.table.document_of_chunk[rows]]
            return f"documents {', '.join(ids)}{', ...' if self.batch.batch_size > 5 else ''}"

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
        """See experiments.language_evaluation."""
        return language_evaluation.evaluate(self)

    def dev_evaluator(self) -> loop.Evaluator:
        """Returns the evaluator of dev documents: `dev/loss` in nats a token, `dev/log_likelihood`, its
        negative, `dev/perplexity`, and `dev/loss/<domain>` where there are several domains."""
        chunks = self.chunks("dev")

        def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
            found_N, tokens_N = self.scorer(state.eval_params, state.state, chunks, title="scoring dev")
            loss = -found_N.sum() / tokens_N.sum()
            yield BEST, -loss
            yield "dev/loss", loss
            yield "dev/perplexity", perplexity(loss)
            if len(self.domains.names) > 1:
                for number, domain in enumerate(self.domains.names):
                    of_domain = chunks.domains == number
                    yield f"dev/loss/{domain}", -found_N[of_domain].sum() / tokens_N[of_domain].sum()

        return evaluate

    def _check_task(self) -> None:
        """Traces the loss of a microbatch from shapes alone, as only its layers know what fits them."""

        def loss(batch: Mapping[str, jax.Array]) -> jax.Array:
            key = jax.random.key(0)
            return self.task.loss(*self.task.init(key, batch), batch, key, train=True)[0]

        of = self.training
        rows = self.batch.batch_size // of.schedule.microbatches
        try:
            with jax.set_mesh(of.mesh):
                jax.eval_shape(loss, batch_shapes(rows, self.batch.length))
        except DependenceError:
            raise
        except ValueError as error:
            raise UsageError(f"config.task: {error}") from error

    def _say(self, chunks: Chunks, order: MixtureOrder) -> None:
        shares = ", ".join(
            f"{domain} {size:,} ({share:.1%} of the rows)"
            for domain, size, share in zip(self.domains.names, chunks.sizes, order.shares, strict=True)
        )
        print(f"{len(chunks.table.tokens):,} tokens to train on; chunks: {shares}", flush=True)

    def _training_texts(self) -> Iterator[str]:
        for domain in self.domains.names:
            for document in self.domains.documents("train", domain):
                yield document.title
                yield document.text
