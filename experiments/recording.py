"""The routing of a trained run's own test texts, recorded layer by layer for `moe.inspection`.

Of a language model these are documents of its test split, domain by domain. Of a dual encoder they are
queries of its test split and documents of its corpus, which are the two domains.

Letters: B rows, L length, T tokens of all batches with their padding, G groups, S tokens of a group, E
experts.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from corpora.tokenizer import Tokenizer
from dual_encoder.encoding import best_variables
from experiments import cli, contrastive, language, run_dirs
from experiments.cli import UsageError
from language_model import causal, domains, trained
from moe import inspection
from moe.inspection import Edges
from moe.mixture import RECORDED
from moe.routing import Choice
from training import mesh
from training.progress import Progress

NONE = -1  # the label of padding


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one mixture of experts did.

    Attributes:
      edges: what was chosen for the tokens of all texts that it has seen.
      num_experts: E.
      tokens, positions, domains, texts: int64 [T], of each token: its id, and where it stands; -1 of padding.
      entropy: of the router, mean over tokens, see moe.inspection; None where it looks experts up.
      kernels: of the experts, each [E, ...].
    """

    edges: Edges
    num_experts: int
    tokens: np.ndarray
    positions: np.ndarray
    domains: np.ndarray
    texts: np.ndarray
    entropy: float | None
    kernels: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Recording:
    """Attributes:
    step: of the checkpoint.
    domains: names, by number.
    texts: how many, by domain.
    length: tokens of the longest text that can be.
    tokenizer: the run's.
    layers: by name, in the model's order.
    """

    step: int
    domains: list[str]
    texts: list[int]
    length: int
    tokenizer: Tokenizer
    layers: dict[str, Layer]


@dataclasses.dataclass(frozen=True)
class _Source:
    """A trained model, and what it is to read."""

    step: int
    model: nn.Module
    variables: Mapping[str, Any]
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    texts: Mapping[str, int]  # by domain
    length: int
    batches: "Batches"
    count: int  # of their rows, those that fill the last batch included


# (method of the model, batch with `domains`, the number of the text of each row [B])
Batches = Iterator[tuple[str, Mapping[str, np.ndarray], np.ndarray]]


def record(run_dir: str | Path, *, documents: int, rows: int) -> Recording:
    """Records the best checkpoint of a run.

    Args:
      run_dir: of a language model or a dual encoder.
      documents: texts of each domain, at most.
      rows: B.

    Raises:
      UsageError: a run of another family, a model without experts, rows that do not divide.
      CheckpointError: it has no checkpoint.
    """
    experiment = run_dirs.reopen(run_dir)
    if isinstance(experiment, language.Experiment):
        make = _language_model
    elif isinstance(experiment, contrastive.Experiment):
        make = _dual_encoder
    else:
        raise UsageError(
            f"--workdir: {run_dir} is a run of {type(experiment).__module__}; allowed: a language model or a "
            "dual encoder"
        )
    return _record(make(experiment, documents, rows), str(run_dir))


def _language_model(experiment: language.Experiment, documents: int, rows: int) -> _Source:
    of, length = experiment.training, experiment.batch.length
    with cli.expecting(ValueError):
        mesh.check_rows(rows, of.mesh, what="--batch_size")
    step, params, state = trained.best(experiment.run_dir, experiment.task, of.mesh, of.layout)
    chunks, names = experiment.chunks("test"), experiment.domains.names
    counts = [len(experiment.domains.rows[domain]["test"]) for domain in names]
    first = np.cumsum([0, *counts])[chunks.domains]
    chosen = np.flatnonzero(chunks.table.document_of_chunk - first < documents)
    make = domains.batches(chunks, length)

    def batches() -> Batches:
        for rows_B in _rows(chosen, rows):
            yield "__call__", causal.read(make(rows_B, 0)), chunks.table.document_of_chunk[rows_B]

    return _Source(
        step,
        experiment.task.model,
        experiment.task.variables(params, state),
        of.mesh,
        experiment.tokenizer,
        {domain: min(count, documents) for domain, count in zip(names, counts, strict=True)},
        length,
        batches(),
        -(-len(chosen) // rows) * rows,
    )


def _dual_encoder(experiment: contrastive.Experiment, documents: int, rows: int) -> _Source:
    task, text, dataset = experiment.task, experiment.text, experiment.dataset
    step, variables = best_variables(experiment.run_dir, task)
    query_ids = list(dataset.split(experiment.evaluation.test_split))[:documents]
    some = np.linspace(0, len(dataset.doc_ids), min(documents, len(dataset.doc_ids)), endpoint=False)
    passages = text.passages(experiment.tokenizer, dataset.documents.read(some.astype(np.int64)))
    sides = (
        ("encode_query", experiment.query_tokens(query_ids), text.query_length),
        ("encode_document", passages, text.document_length),
    )

    def batches() -> Batches:
        for domain, (method, table, length) in enumerate(sides):
            first = domain * len(query_ids)
            text_of_row = passages.document_of_row if domain else np.arange(len(table))
            for rows_B in _rows(np.arange(len(table)), rows):
                batch = table.rectangle(rows_B, length)
                batch["domains"] = np.full(rows, domain, np.int32)
                yield method, batch, first + text_of_row[rows_B]

    return _Source(
        step,
        task.model,
        variables,
        mesh.data_mesh(jax.local_devices()[:1]),
        experiment.tokenizer,
        {"queries": len(query_ids), "documents": len(some)},
        max(text.query_length, text.document_length),
        batches(),
        sum(-(-len(table) // rows) * rows for _, table, _ in sides),
    )


def _rows(chosen: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Cuts numbers into batches of the same size, the last one filled up with -1."""
    for start in range(0, len(chosen), rows):
        part = chosen[start : start + rows]
        yield np.pad(part, (0, rows - len(part)), constant_values=-1)


def _record(source: _Source, title: str) -> Recording:
    run = jax.jit(functools.partial(_routed, source.model), static_argnums=0)
    progress = Progress(source.count, unit="row", title=f"recording {title}")
    parts: dict[_Place, list[_Part]] = {}
    for done, (method, batch, texts_B) in enumerate(source.batches, 1):
        with jax.set_mesh(source.mesh), cli.expecting(ValueError):
            found = run(method, source.variables, mesh.shard_batch(batch, source.mesh))
        for place, routed in jax.device_get(found).items():
            parts.setdefault(place, []).append(_Part.of(routed, batch, texts_B))
        progress.update(done * len(texts_B))
    progress.close()
    if not parts:
        raise UsageError(f"--workdir: the model of {title} has no mixture of experts")
    layers = {
        name: _Part.join(parts[place], _kernels(source.variables["params"], place))
        for place, name in _names(list(parts)).items()
    }
    return Recording(
        source.step, list(source.texts), list(source.texts.values()), source.length, source.tokenizer, layers
    )


_Place = tuple[str, int]  # the path of a mixture, and which layer of a scan it is; -1 outside of a scan
# Its choice; bool [G, R], what the router chose before any capacity; and the entropy of its probabilities
# [G, S], where it has some.
_Routed = tuple[Choice, jax.Array, jax.Array | None]


def _routed(
    model: nn.Module, method: str, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> dict[_Place, _Routed]:
    """What each mixture does with a batch."""
    _, found = model.apply(
        variables,
        batch,
        method=method,
        mutable=[RECORDED, "intermediates"],
        capture_intermediates=lambda module, name: module.name == "router" and name == "__call__",
    )
    routings = traverse_util.flatten_dict(found.get("intermediates", {}))
    layers: dict[_Place, _Routed] = {}
    for path, choice in traverse_util.flatten_dict(found.get(RECORDED, {})).items():
        (routing,) = routings[(*path[:-1], "router", "__call__")]
        entropy = None if routing.probabilities is None else _entropy(routing.probabilities)
        where = "/".join(path[:-1])
        if choice.token.ndim == 2:
            layers[where, -1] = choice, routing.keep, entropy
        else:
            for number in range(len(choice.token)):
                of_all = (choice, routing.keep, entropy)
                layers[where, number] = jax.tree.map(lambda x, at=number: x[at], of_all)
    return layers


def _entropy(probability: jax.Array) -> jax.Array:
    """The entropy of distributions over E on the last axis, over log E."""
    experts = probability.shape[-1]
    return jax.scipy.special.entr(probability).sum(-1) / (np.log(experts) if experts > 1 else 1.0)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A layer and a batch, as in `Layer`; `entropy` float [T], or None."""

    edges: Edges
    tokens: np.ndarray
    positions: np.ndarray
    domains: np.ndarray
    texts: np.ndarray
    entropy: np.ndarray | None

    @classmethod
    def of(cls, routed: _Routed, batch: Mapping[str, np.ndarray], texts_B: np.ndarray) -> "_Part":
        choice, chosen_GR, entropy = routed
        valid_BL = batch["mask"].astype(bool)
        valid_GS = valid_BL.reshape(len(choice.token), -1)
        chosen_GR = chosen_GR & np.take_along_axis(valid_GS, choice.token, axis=1)
        label = lambda x: np.where(valid_BL, x, NONE).ravel()
        return cls(
            inspection.edges(choice, valid_BL.size, chosen_GR),
            label(batch["tokens"]),
            label(np.arange(valid_BL.shape[1])[None]),
            label(batch["domains"][:, None]),
            label(texts_B[:, None]),
            None if entropy is None else entropy.ravel(),
        )

    @staticmethod
    def join(parts: list["_Part"], kernels: list[np.ndarray]) -> Layer:
        tokens, positions, domains, texts = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("tokens", "positions", "domains", "texts")
        )
        entropy = None
        if parts[0].entropy is not None:
            entropy = float(np.concatenate([part.entropy for part in parts])[tokens != NONE].mean())
        edges = inspection.join([part.edges for part in parts])
        return Layer(edges, len(kernels[0]), tokens, positions, domains, texts, entropy, kernels)


def _kernels(params: Any, place: _Place) -> list[np.ndarray]:
    """The weights of the experts of a layer, each [E, ...]."""
    path, number = place
    for name in (*path.split("/"), "experts"):
        params = params[name]
    return [np.asarray(x if number < 0 else x[number]) for x in jax.tree.leaves(params)]


def _names(places: list[_Place]) -> dict[_Place, str]:
    """What layers are called, in the order of the model: by number where one scan holds them all."""
    paths = {path: path.split("/") for path, _ in places}
    if len(paths) == 1:
        return {place: f"layer {max(place[1], 0)}" for place in sorted(places)}
    shortest = min(map(len, paths.values()))
    differing = [i for i in range(shortest) if len({parts[i] for parts in paths.values()}) > 1]
    start = differing[0] if differing else shortest
    naturally = lambda text: [int(x) if x.isdigit() else x for x in re.split(r"([0-9]+)", text)]
    order = sorted(places, key=lambda place: (naturally(place[0]), place[1]))
    short = lambda parts: "/".join(part for part in parts[start:] if part != "feed_forward")
    return {
        (path, number): f"{short(paths[path])} {'' if number < 0 else number}".strip()
        for path, number in order
    }
