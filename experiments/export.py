"""Write a run's dual encoder as a sentence-transformers folder, which gives the same vectors there.

The run's encoder must have come from a published architecture: a config with `dual_encoder.pretrained.model`,
`.tower` or `backbones.pretrained.models.encoder`, such as configs/dual_encoder/finetune.py. Such a folder has
one tower; of two that differ, --side says which.

Examples:
  python -m experiments.export runs/mine --out=models/mine
  python -m experiments.export runs/asymmetric --out=models/queries --side=query
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from flax import linen as nn

from backbones.pretrained.folder import read_config
from dual_encoder import pretrained_export
from dual_encoder.pretrained_folder import describe
from dual_encoder.pretrained_pooling import Pooling
from dual_encoder.towers import DualEncoder
from dual_encoder.trained import Trained, task_of
from experiments import cli, run_dirs
from training import distributed

_SIDES = ("query", "document")
# What builds an encoder from the folder that its `path` names.
_FROM_FOLDER = (
    "dual_encoder.pretrained.model", "dual_encoder.pretrained.tower", "backbones.pretrained.models.encoder",
)  # fmt: skip


def main() -> None:
    """Entry point of `retrievax-export`."""
    command = cli.Command(__doc__)
    runs = command.arguments("RUN", "the run directory.", least=1)
    out = command.string("out", None, "The folder to write; it must not be there, or be empty.")
    side = command.choice("side", None, _SIDES, "The tower to write, of two that differ.")

    def export() -> None:
        if len(runs.values) > 1:
            raise cli.UsageError(f"{len(runs.values)} RUN given; allowed: one")
        if out.value is None:
            raise cli.UsageError("--out is not given; it names the folder to write")
        distributed.start()
        run_dir = runs.values[0]
        config = run_dirs.load_config(run_dir)
        model = task_of(config).model
        chosen = _side(model, side.value)
        source, spec = _source(config["task"], chosen)
        trained = Trained.load(run_dir, config)
        state = [name for name in trained.variables if name != "params"]
        if state:
            raise cli.UsageError(
                f"{run_dir}: the encoder has {', '.join(state)} beside its parameters; allowed: none, for no "
                "published architecture has it"
            )
        params = trained.variables["params"]
        pretrained_export.save(
            out.value,
            getattr(model, chosen),
            _parameters(model, chosen, params),
            config=source if spec.get("causal") is None else {**source, "is_causal": spec["causal"]},
            tokenizer=trained.tokenizer,
            text=trained.text,
        )
        print(f"{out.value}: {trained.width} wide, of step {trained.step} of {run_dir}")

    command.run(export)


def _side(model: DualEncoder, given: str | None) -> str:
    query, document = model.query, model.document
    shared = (
        query.encoder is document.encoder
        and query.head is document.head
        and _pooling(query.pooler) == _pooling(document.pooler)
        and (query.normalize, query.unpooled) == (document.normalize, document.unpooled)
    )
    if given is None and not shared:
        raise cli.UsageError(f"--side is not given, and the run has two towers; allowed: {', '.join(_SIDES)}")
    return given or "query"


def _pooling(pooler: Any) -> Any:
    """What is equal for two poolers that pool alike, but for the prompts that they skip."""
    if isinstance(pooler, Pooling):
        return pooler.modes
    if isinstance(pooler, functools.partial) and not pooler.args and not pooler.keywords:
        return pooler.func  # as a config names a function
    return id(pooler) if isinstance(pooler, nn.Module) else pooler  # equal modules have other parameters


def _parameters(model: DualEncoder, side: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a tower's parameters; where modules are shared, they stand with the query's alone."""
    return _with_shared(getattr(model, side), model.query, params.get(side, {}), params["query"])


def _with_shared(
    module: nn.Module, query: nn.Module, own: Mapping[str, Any], queries: Mapping[str, Any]
) -> Mapping[str, Any]:
    if module is query and not own:
        return queries
    found = dict(own)
    for field in dataclasses.fields(module):
        part, other = getattr(module, field.name), getattr(query, field.name, None)
        if isinstance(part, nn.Module) and isinstance(other, nn.Module) and field.name in queries:
            found[field.name] = _with_shared(part, other, own.get(field.name, {}), queries[field.name])
    return found


def _source(task: Mapping[str, Any], side: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Returns the config.json of a side's encoder, and the spec that names its folder."""
    found = list(_specs(task, ""))
    of_side = [spec for where, spec in found if f".{side}." in where] or [spec for _, spec in found]
    if not of_side:
        raise cli.UsageError(
            f"the run's encoder came from no folder; allowed: one that {' or '.join(_FROM_FOLDER)} has built"
        )
    return read_config(describe(of_side[0]["path"]).transformer), of_side[0]


def _specs(spec: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields every spec of an encoder from a folder, with its place."""
    if isinstance(spec, Mapping):
        if spec.get("name") in _FROM_FOLDER:
            yield f"{where}.", spec
        for key, value in spec.items():
            yield from _specs(value, f"{where}.{key}")


if __name__ == "__main__":
    main()
