"""What experiments of every family make of their config before they train: parts that are built and checked.

The fields that all families share:

    seed        of initialization, dropout and the order of the data
    tokenizer   spec of a tokenizer: loaded, or trained on texts of the training split
    optimizer   spec of an optax transformation
    mesh        how devices are arranged and what lies where on them, see training.mesh.Layout
    init_from   a run, or a published encoder, whose parameters are taken to begin with, see
                experiments.settings.InitFrom
    schedule    see training.loop.Schedule
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optax
from flax import linen as nn
from jax.sharding import Mesh

from corpora import tokenizer as tokenizers
from corpora.tokenizer import TOKENIZER_FILE
from dual_encoder import pretrained
from dual_encoder.pretrained_folder import describe
from experiments import settings
from experiments.cli import UsageError
from moe import leakage
from training import checkpoints, distributed, loop, mesh, warm_start
from training.build import build, fill
from training.start import Initialize


@dataclasses.dataclass(frozen=True)
class Training:
    """How a run trains, as its config says; attributes are fields of the config, and the devices."""

    schedule: loop.Schedule
    optimizer: optax.GradientTransformation
    layout: mesh.Layout
    mesh: Mesh
    init_from: settings.InitFrom


def check_fields(config: Mapping[str, Any], fields: Sequence[str]) -> None:
    """Raises UsageError where a config lacks a field, or its seed is none."""
    missing = [field for field in fields if field not in config]
    if missing:
        raise UsageError(f"the config has no {', '.join(missing)}; allowed: {', '.join(fields)}")
    if not 0 <= config["seed"] < 2**32:
        raise UsageError(f"config.seed is {config['seed']}; allowed: 0 to {2**32 - 1}")


def training(
    config: Mapping[str, Any], run_dir: Path, *, rows: int, measured: Sequence[str], said_by: str = ""
) -> Training:
    """Builds what a run trains with.

    Args:
      config: an experiment's, whose fields are there.
      run_dir: the run.
      rows: of a batch.
      measured: the names that the evaluators give.
      said_by: the field of the config that names them, if one does.

    Raises:
      SpecError, UsageError: a field is malformed, or does not go with another.
      CheckpointError: the run to begin with has no best checkpoint.
      PretrainedError: the folder to begin with cannot be read.
    """
    init_from = fill(settings.InitFrom, build(config["init_from"]), "config.init_from")
    if init_from.folder:
        describe(init_from.folder)
    if init_from.run and not checkpoints.steps(run_dir / "checkpoints" / checkpoints.LATEST):
        checkpoints.check_best(Path(init_from.run) / "checkpoints")
    schedule = fill(loop.Schedule, config["schedule"], "config.schedule")
    optimizer = build(config["optimizer"], "config.optimizer")
    layout = fill(mesh.Layout, config["mesh"], "config.mesh")
    try:
        devices = layout.mesh()
        mesh.check_rows(rows, devices, parts=schedule.microbatches)
    except ValueError as error:
        raise UsageError(f"config.mesh: {error}") from None
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UsageError("config.optimizer is no optax transformation; is an argument missing?")
    for where, steps in fields_named(config["optimizer"], "config.optimizer", "total_steps"):
        if steps != schedule.total_steps:
            print(
                f"warning: {where} is {steps} and config.schedule.total_steps {schedule.total_steps}: the "
                "learning rate follows the first",
                flush=True,
            )
    if schedule.best_measure not in measured:
        raise UsageError(
            f"config.schedule.best_measure is {schedule.best_measure!r}; allowed: "
            f"{', '.join(measured)}{f' ({said_by})' if said_by else ''}"
        )
    return Training(schedule, optimizer, layout, devices, init_from)


def tokenizer(
    run_dir: Path, given: Any, texts: Callable[[], Iterable[str]], sizes: Sequence[tuple[str, int]]
) -> tokenizers.Tokenizer:
    """Returns the run's tokenizer, which the first process makes where it is not there yet.

    Args:
      run_dir: keeps it.
      given: the built field `tokenizer`: a tokenizer, or a function that trains one.
      texts: those to train on.
      sizes: of the embeddings that must hold its vocabulary, each with the field that says so.

    Raises:
      UsageError: it cannot be trained so, or has more entries than one of `sizes`.
    """
    file = run_dir / TOKENIZER_FILE
    with distributed.leader_first("making the tokenizer"):
        if not file.exists():
            if not isinstance(given, tokenizers.Tokenizer):  # a training function waiting for its texts
                try:
                    given = given(texts())
                except ValueError as error:
                    raise UsageError(f"config.tokenizer: {error}") from error
            partial = file.with_name("tokenizer.partial")
            given.save(partial)
            partial.replace(file)
        made = tokenizers.load(str(file))
    for where, size in sizes:
        if size < made.vocab_size:
            raise UsageError(
                f"{where} is {size}, but the tokenizer has {made.vocab_size} entries; "
                f"allowed: {made.vocab_size} or more"
            )
    return made


def initialize(init_from: settings.InitFrom, run_dir: Path) -> Initialize | None:
    """Returns the function that takes over the parameters and state of `init_from.run`, or the parameters of
    `init_from.folder`, and says what became of each, or None where neither is named."""
    if not init_from.run and not init_from.folder:
        return None

    def take(params: Any, state: Any) -> tuple[Any, Any]:
        source = Path(init_from.run or init_from.folder)
        if init_from.run:
            params, state, report = warm_start.load(params, state, source, init_from.rules)
            theirs = source / TOKENIZER_FILE
            other = theirs.exists() and theirs.read_bytes() != (run_dir / TOKENIZER_FILE).read_bytes()
        else:
            tower = pretrained.parameters(init_from.folder)
            if init_from.rules:
                params, report = warm_start.merge(params, tower, init_from.rules)
            else:
                params, report = warm_start.everywhere(params, [tower, tower["encoder"]])
            ours = tokenizers.load(str(run_dir / TOKENIZER_FILE))
            other = pretrained.tokenizer(init_from.folder).to_json() != ours.to_json()
        print("\n".join([f"from {source}: {report.lines()[0]}", *report.lines()[1:]]), flush=True)
        if distributed.is_leader():
            (run_dir / "init_from.json").write_text(json.dumps(dataclasses.asdict(report), indent=1))
        if other:
            print(
                f"warning: the tokenizer of {source} is another one: token embeddings taken from there mean "
                "other tokens here",
                flush=True,
            )
        return params, state

    return take


def warn_of_leaks(model: nn.Module, what: str) -> None:
    """Prints a warning where `what` a text gets of a model depends on the texts that it is computed with."""
    if any(found.batch for _, found in leakage.of(model).values()) and distributed.is_leader():
        print(
            f"warning: a text's {what} depends on the texts that are computed with it; the measures are "
            "those of this batch size and order",
            flush=True,
        )


def vocab_sizes(task_spec: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Returns every `vocab_size` of a Task whose embeddings are all of words, with its place."""
    return list(fields_named(task_spec, "config.task", "vocab_size"))


def fields_named(spec: Any, where: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yields every field of a name in a spec, with its place."""
    if isinstance(spec, Mapping):
        for key, value in spec.items():
            if key == name:
                yield f"{where}.{key}", value
            yield from fields_named(value, f"{where}.{key}", name)
    elif isinstance(spec, (list, tuple)):
        for number, value in enumerate(spec):
            yield from fields_named(value, f"{where}[{number}]", name)
