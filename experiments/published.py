"""The evaluation of a published encoder as it is; a config names `Experiment` as its `family`.

The fields of such a config:

    seed        of the run's record; nothing here is random
    data        spec of a collection; train and dev judgements need not be there
    tokenizer   spec of a tokenizer, such as dual_encoder.pretrained.tokenizer
    text        lengths and prompts, see corpora.tokens.TextSettings
    task        spec of the Task, whose model is the encoder
    init_from   the folder whose parameters are taken, see experiments.settings.InitFrom
    evaluation  see experiments.settings.Evaluation

The run directory is that of a run which was trained for no step: its best checkpoint is step 0, and every
program takes it.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from corpora import tokenizer as tokenizers
from corpora import tokens
from corpora.dataset import Dataset
from dual_encoder.encoding import Encoder
from dual_encoder.task import smallest_batch
from eval import results
from experiments import contrastive, evaluation, opening, settings
from experiments.cli import UsageError
from training import checkpoints, distributed
from training.build import build, fill
from training.profiling import Profile
from training.task import TrainState

_FIELDS = ("seed", "data", "tokenizer", "text", "task", "init_from", "evaluation")


class Experiment:
    """A config's objects.

    Args:
      config: as a plain dict.
      run_dir: where the tokenizer, the checkpoint and results go.

    Raises:
      SpecError, UsageError, DataError, PretrainedError: what a config names does not exist or is malformed.
    """

    searching = contrastive.Experiment.searching

    def __init__(self, config: Mapping[str, Any], run_dir: Path):
        opening.check_fields(config, _FIELDS)
        self.config, self.run_dir = config, run_dir
        self.task = build(config["task"], "config.task")
        self.text = fill(tokens.TextSettings, config["text"], "config.text")
        self.evaluation = settings.evaluation(config["evaluation"], "config.evaluation")
        self._init_from = fill(settings.InitFrom, build(config["init_from"]), "config.init_from")
        if not self._init_from.folder and not self._init_from.run:
            raise UsageError("config.init_from names neither a folder nor a run; nothing here is trained")
        self._tokenizer_spec = build(config["tokenizer"], "config.tokenizer")
        with distributed.leader_first("preparing the data"):
            self.dataset: Dataset = build(config["data"], "config.data")
        print(self.dataset.summary(), flush=True)
        for split in (self.evaluation.dev_split, self.evaluation.test_split):
            if split:
                self.dataset.split(split)
        self.encoder = Encoder(self.task.model)

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return opening.tokenizer(
            self.run_dir, self._tokenizer_spec, list, opening.vocab_sizes(self.config["task"])
        )

    def train(self, *, profile: Profile | None = None) -> TrainState | None:
        """Writes the checkpoint of step 0, where it is not there yet.

        Raises:
          UsageError: steps are to be traced, and there are none.
        """
        if profile is not None:
            raise UsageError(
                "--profile is given; a published encoder is not trained, and has no steps to trace"
            )
        folder = self.run_dir / "checkpoints"
        if checkpoints.best_record(folder) is not None:
            return None
        _ = self.tokenizer  # it is compared with that of the folder
        fresh = jax.jit(self.task.init)(jax.random.key(self.config["seed"]), smallest_batch(self.task.model))
        take = opening.initialize(self._init_from, self.run_dir)
        params, state = take(*jax.device_get(fresh))
        kept = TrainState(step=0, params=params, state=state, opt_state=())
        with checkpoints.Checkpoints(folder) as made:
            made.save_best(kept, 0.0)
        return kept

    def evaluate(self) -> results.Results:
        """See experiments.evaluation."""
        self.train()
        return evaluation.evaluate(self)
