"""The pod configs of sparse language models: sizes and bytes worked out by hand; with libtpu, their plans."""

import dataclasses
import importlib
import json
import math

import jax
import numpy as np
import pytest

from experiments import cost as program
from experiments import language, planning, run_dirs
from moe import cost
from training import mesh as meshes
from training.mesh import Layout
from training.paths import paths
from training.rules import shardings
from training.task import create


@dataclasses.dataclass(frozen=True)
class Case:
    """What a config says of itself."""

    topology: str
    chips: int
    expert: int
    layers: int
    parameters: int
    active: int
    exchange: int  # bytes that an all-to-all is given on a chip


def attention(width):
    return 4 * width**2 + 2 * width  # and two norms


CASES = {
    # 2 tables, the last norm; a layer's attention, router and experts. 16 rows a chip, C = 1.25 8 2048 / 64.
    "moe_olmoe": Case(
        "v5p:4x4x4",
        64,
        64,
        16,
        2 * 50_304 * 2048 + 2048 + 16 * (attention(2048) + 2048 * 64 + 64 * 3 * 2048 * 1024),
        2 * 50_304 * 2048 + 2048 + 16 * (attention(2048) + 2048 * 64 + 8 * 3 * 2048 * 1024),
        16 * 64 * 320 * 2048 * 2,
    ),
    # Likewise with two shared experts. 4 rows a chip, C = 1.25 6 2048 / 64.
    "moe_deepseek": Case(
        "v5e:16x16",
        256,
        16,
        28,
        2 * 102_400 * 2048 + 2048 + 28 * (attention(2048) + 2048 * 64 + 66 * 3 * 2048 * 1408),
        2 * 102_400 * 2048 + 2048 + 28 * (attention(2048) + 2048 * 64 + 8 * 3 * 2048 * 1408),
        4 * 64 * 240 * 2048 * 2,
    ),
}
EACH = pytest.mark.parametrize("name", CASES)


def load(name, argument=""):
    return importlib.import_module(f"configs.pod.{name}").get_config(argument)


@EACH
def test_parameters_and_exchanged_bytes(name):
    case, found = CASES[name], program.of(load(name).to_dict())
    assert (found["parameters"]["total"], found["parameters"]["active"]) == (case.parameters, case.active)
    (layer,) = found["layers"]
    assert layer["copies"] == case.layers
    del layer["device"], layer["exchange_seconds"], layer["devices"]
    moved = cost.moved(cost.Layer(**layer), devices=case.chips, expert_parts=case.expert)
    assert moved.exchange == case.exchange
    assert moved.sent == case.exchange * (case.expert - 1) / case.expert


@EACH
def test_is_an_experiment(name):
    case, config = CASES[name], load(name, "steps=40").to_dict()
    assert json.loads(json.dumps(config))
    assert set(language.FIELDS) <= set(config)
    planning.check_fields(config)
    planning.parts(config)
    sizes = dict(zip(meshes.AXES, meshes.resolve(config["mesh"]["axes"], case.chips), strict=True))
    assert (sizes["expert"], math.prod(sizes.values())) == (case.expert, case.chips)


@EACH
def test_its_rules_match_and_divide(name):
    """On eight devices; the state of the optimizer lies as its parameter."""
    config = load(name).to_dict()
    layout = Layout({"fsdp": 2, "expert": 4}, config["mesh"]["parameters"], config["mesh"]["activations"])
    task, optimizer, _ = planning.parts(config)
    batch = {
        name: jax.ShapeDtypeStruct((8, *shape[1:]), np.int32)
        for name, shape in planning.batch_shapes(config).items()
    }
    state = jax.eval_shape(lambda batch: create(task, optimizer, jax.random.key(0), batch), batch)
    placed = shardings(state, layout.mesh(), layout.parameters)
    split = {
        path: np.prod(x.shape) / np.prod(s.shard_shape(x.shape))
        for path, x, s in zip(
            paths(state.params), jax.tree.leaves(state.params), jax.tree.leaves(placed.params), strict=True
        )
    }
    assert {path for path, parts in split.items() if parts == 8} == {p for p in split if "/experts/" in p}
    assert {path for path, parts in split.items() if parts == 1} == {
        path for path in split if path.endswith(("scale", "score/kernel"))
    }


@pytest.mark.slow
@EACH
def test_trains_when_it_is_small(name, tmp_path, monkeypatch):
    """Sizes alone are cut down; data, tokenizer, loss, layers, mesh rules and optimizer are the config's."""
    monkeypatch.setenv("RETRIEVAX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "words"
    folder.mkdir()
    words = [f"{a}{b}" for a in "bdfgklm" for b in ("ing", "ore", "ut", "ane")]
    rows = [
        dict(_id=f"d{i}", title=word, text=f"{word} {words[i % 7]} " * 8) for i, word in enumerate(words * 4)
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text(json.dumps(dict(_id="q", text=words[0])) + "\n")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n")
    config = load(name, f"folders={folder},steps=2")
    config.batch.update(batch_size=16, length=16)
    config.evaluation.batch_size = 16
    model = config.task.model
    model.num_layers = 2
    for table in (model.embed, model.output):
        table.update(vocab_size=300, width=32)
    config.tokenizer.vocab_size = 300
    model.block.attention.heads = 2
    model.block.feed_forward.router.update(num_experts=8, k=2)
    model.block.feed_forward.experts.width = 24
    model.block.feed_forward.dispatcher.capacity.tokens = 16
    if "shared" in model.block.feed_forward:
        model.block.feed_forward.shared.width = 48
    config.mesh.axes.update(data=1, fsdp=2, expert=4)
    experiment = run_dirs.start(tmp_path / "run", config.to_dict())
    state = experiment.train()
    assert int(state.step) == 2
    kernel = state.params["model"]["block"]["feed_forward"]["experts"]["in"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 2, 16, 24)
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in written if "loss" in row]
    assert losses
    assert np.isfinite(losses).all()


@pytest.mark.tpu_plan
@pytest.mark.slow
@EACH
def test_plans(name, tpu_devices):
    """Compiles the step for the slice it is for, where it fits."""
    del tpu_devices
    case = CASES[name]
    found = planning.plan(load(name).to_dict(), case.topology, say=lambda text: None)
    assert (found.chips, found.parameters) == (case.chips, case.parameters)
    assert found.fits
    assert found.unknown == ()
    exchanges = {one: times for one, times in found.sent.items() if "all-to-all" in one.kind}
    assert {(one.axes, one.operand_bytes) for one in exchanges} == {(("expert",), case.exchange)}
    # Two forward, two as that is computed again, two backward.
    assert sum(exchanges.values()) == 6 * case.layers
    # Nothing else along `expert` is of the size of tokens or of experts: no gather at all.
    assert not [one for one in found.sent if "expert" in one.axes and one.kind == "all-gather"]
    assert 0.2 < found.best_utilization < 1
