"""Experts of small models that are not trained: what they do is known from their routers' tables."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from corpora import beir
from corpora.tables import Document, Judgement, Query, Tables
from dual_encoder.task import SMALLEST_BATCH
from experiments import cli, experts, recording, run_dirs
from language_model.causal import batch_shapes
from training.checkpoints import Checkpoints
from training.task import TrainState

ROOT = Path(__file__).parents[2]
WORDS = {
    "birds": ["wren", "lark", "rook", "finch", "heron", "stork"],
    "boats": ["yawl", "ketch", "sloop", "barge", "punt", "raft"],
}
LENGTH, EXPERTS, WIDTH = 16, 4, 16


def collection(folder, words, documents=60, seed=0):
    """Documents of words in a random order, and a query of three words for each."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(words, rng.integers(5, 30))) for _ in range(documents)]
    ids = [f"d{i}" for i in range(documents)]
    third = documents // 3
    splits = {"train": ids[:third], "dev": ids[third : 2 * third], "test": ids[2 * third :]}
    beir.write(
        folder,
        Tables(
            [Document(doc_id, "", text) for doc_id, text in zip(ids, texts, strict=True)],
            [Query(doc_id, " ".join(text.split()[:3])) for doc_id, text in zip(ids, texts, strict=True)],
            {name: [Judgement(doc_id, doc_id, 1) for doc_id in of] for name, of in splits.items()},
            {},
        ),
    )
    return folder


def config_of(file, argument):
    path = ROOT / "configs" / file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument).to_dict()
    config["tokenizer"]["vocab_size"] = 200
    config["mesh"] |= {"parameters": (), "activations": ()}
    return config


def mixture(router, dispatcher=None):
    return dict(
        name="moe.mixture.Mixture",
        router=dict(num_experts=EXPERTS) | router,
        experts=dict(name="moe.experts.Dense", width=8),
        dispatcher=dispatcher or dict(name="moe.one_hot.OneHot"),
    )


def started(run_dir, config, seed=0):
    """A run whose best checkpoint has random parameters."""
    experiment = run_dirs.start(run_dir, config)
    assert experiment.tokenizer  # kept in the run directory, as by a training
    batch = (
        SMALLEST_BATCH if config["family"].endswith("contrastive.Experiment") else batch_shapes(16, LENGTH)
    )
    shapes = jax.eval_shape(experiment.task.init, jax.random.key(0), batch)
    rng = np.random.default_rng(seed)
    params, state = jax.tree.map(lambda x: rng.normal(scale=0.3, size=x.shape).astype(x.dtype), shapes)
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        checkpoints.save_best(TrainState(np.int32(7), params, state, opt_state=()), 0.0)
    return experiment


def language_model(run_dir, folders, layer, seed=0, batch=8):
    argument = f"folders={'+'.join(map(str, folders))},width={WIDTH},layers=2,length={LENGTH},steps=2"
    argument += f",batch={batch}"
    config = config_of("language_model/corpora.py", argument)
    config["data"] |= {"dev": 0.2, "test": 0.3}
    config["task"]["model"]["embed"]["vocab_size"] = 200
    config["task"]["model"]["block"]["feed_forward"] = layer
    if "router" in layer:
        config["task"]["auxiliary"] = dict(name="moe.auxiliary.Auxiliary", losses={}, weights={})
    return started(run_dir, config, seed)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("collections")
    return [collection(tmp / name, words) for name, words in WORDS.items()]


@pytest.fixture(scope="module")
def by_token(tmp_path_factory, folders):
    """Two layers that send each token id to the expert id % 4, with room for two tokens of a chunk each."""
    run_dir = tmp_path_factory.mktemp("runs") / "by_token"
    table = [number % EXPERTS for number in range(200)]
    layer = mixture(
        dict(name="moe.tables.ByToken", table=dict(name="moe.tables.given", experts=table)),
        dict(
            name="moe.one_hot.OneHot", capacity=dict(name="moe.capacity.Capacity", factor=0.5, tokens=LENGTH)
        ),
    )
    return language_model(run_dir, folders, layer)


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["experts", *map(str, arguments)])
    experts.main()


def test_a_language_model_whose_experts_are_given_by_token_id(by_token, monkeypatch, capsys):
    call(
        monkeypatch,
        f"--workdir={by_token.run_dir}",
        f"--against={by_token.run_dir}",
        "--batch_size=8",
        "--least=1",
    )
    written = json.loads((by_token.run_dir / "experts" / "experts.json").read_text())
    chunks = by_token.chunks("test")
    assert written["meta"]["step"] == 7
    assert written["meta"]["texts"] == {
        name: len(by_token.domains.rows[name]["test"]) for name in ("birds", "boats")
    }

    # What a loop over the tokens of each chunk finds.
    batch = chunks.table.rectangle(np.arange(len(chunks.table)), LENGTH)
    load, lost, seen = np.zeros(EXPERTS, int), np.zeros(LENGTH, int), np.zeros(LENGTH, int)
    for tokens, mask in zip(batch["tokens"], batch["mask"], strict=True):
        used = np.zeros(EXPERTS, int)
        for position, token in enumerate(tokens[mask.astype(bool)]):
            seen[position] += 1
            if used[token % EXPERTS] < 2:
                used[token % EXPERTS] += 1
            else:
                lost[position] += 1
        load += used
    assert lost[:2].sum() == 0 < lost[2:].sum()
    assert list(written["layers"]) == ["layer 0", "layer 1"]
    for layer in written["layers"].values():
        assert layer["served"] == load.tolist()
        assert layer["chosen"] == np.bincount(batch["tokens"][batch["mask"] > 0] % EXPERTS).tolist()
        assert layer["tokens"] == seen.sum()
        assert layer["dropped"] == pytest.approx(lost.sum() / seen.sum())
        np.testing.assert_allclose(layer["dropped_by_position"], lost / seen)
        assert layer["by_token_id"]["information"] == pytest.approx(1)
        assert layer["by_token_id"]["shuffled"]["information"] < 0.2
        assert layer["router_entropy"] is None
        assert layer["agreement"] == 1
    printed = capsys.readouterr().out
    assert "100.0% (" in printed
    assert all((by_token.run_dir / "experts" / name).stat().st_size > 1000 for name in experts.PICTURES)


def test_a_language_model_whose_experts_are_given_by_domain(tmp_path, folders):
    layer = mixture(dict(name="moe.tables.ByDomain", experts=((0,), (2, 3))))
    run = language_model(tmp_path / "run", folders, layer)
    found = recording.record(run.run_dir, documents=3, rows=8)
    assert found.texts == [3, 3]
    report = experts.layer_report(found.layers["layer 1"], found)
    assert report["frequency_of_domain"] == {"birds": [1, 0, 0, 0], "boats": [0, 0, 1, 1]}
    assert report["chosen"][0] + report["chosen"][2] == report["tokens"]
    assert report["dropped"] == 0
    # Of one choice of birds and two of boats; which of the two is chosen, the domain does not say.
    assert report["by_domain"]["information"] > 0.4


@pytest.mark.slow
def test_runs_are_compared(tmp_path, folders):
    router = dict(name="moe.routers.TopK", k=2)
    ours, theirs = (
        recording.record(
            language_model(tmp_path / name, folders, mixture(router), seed).run_dir, documents=3, rows=8
        )
        for seed, name in enumerate("ab")
    )
    experts.check_same_texts(ours, theirs, "that")
    for name, layer in ours.layers.items():
        report = experts.layer_report(layer, ours, against=theirs.layers[name])
        assert 0.1 < report["agreement"] < 0.9
        assert 0.1 < report["router_entropy"] < 1
        assert abs(report["similarity"]) < 0.2

    changed = dataclasses.replace(ours.layers["layer 1"], tokens=theirs.layers["layer 1"].tokens + 1)
    other = dataclasses.replace(ours, layers=ours.layers | {"layer 1": changed})
    with pytest.raises(cli.UsageError, match="--against: that reads other tokens"):
        experts.check_same_texts(ours, other, "that")
    fewer = dataclasses.replace(ours, layers={"layer 0": ours.layers["layer 0"]})
    with pytest.raises(
        cli.UsageError, match="--against: that has the layers layer 0; allowed: layer 0, layer 1"
    ):
        experts.check_same_texts(ours, fewer, "that")


def test_a_dual_encoder(tmp_path, folders):
    """Its experts are given by side: queries to the first, documents to the others."""
    config = config_of("dual_encoder/beir_folder.py", f"folder={folders[0]},steps=4,batch=8")
    encoder = dict(
        name="backbones.encoder.TransformerEncoder",
        num_layers=2,
        embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=200, width=WIDTH),
        block=dict(
            name="backbones.blocks.PreNorm",
            attention=dict(name="backbones.attention.SelfAttention", heads=2),
            feed_forward=mixture(dict(name="moe.tables.ByDomain", experts=((0,), (1, 2, 3)))),
            norm=dict(name="backbones.norms.RMSNorm"),
        ),
        norm=dict(name="backbones.norms.RMSNorm"),
    )
    tower = dict(
        name="dual_encoder.towers.Tower", encoder=encoder, pooler=dict(name="dual_encoder.poolers.mean")
    )
    config["task"]["model"] = dict(name="dual_encoder.towers.tied", tower=tower)
    config["task"]["auxiliary"] = dict(name="moe.auxiliary.Auxiliary", losses={}, weights={})
    run = started(tmp_path / "run", config)
    found = recording.record(run.run_dir, documents=10, rows=8)
    assert found.domains == ["queries", "documents"]
    assert found.texts == [10, 10]
    for layer in found.layers.values():
        report = experts.layer_report(layer, found)
        assert report["frequency_of_domain"] == {"queries": [1, 0, 0, 0], "documents": [0, 1, 1, 1]}
    assert len(set(layer.texts.tolist())) == 21  # and the padding


def test_a_dense_model_has_none(tmp_path, folders):
    layer = dict(name="moe.feed_forward.Dense", width=8)
    run = language_model(tmp_path / "run", folders, layer)
    with pytest.raises(cli.UsageError, match="has no mixture of experts"):
        recording.record(run.run_dir, documents=2, rows=8)


def test_rows_that_groups_do_not_divide(tmp_path, folders):
    layer = mixture(dict(name="moe.routers.TopK", k=2)) | {"group_rows": 16}
    run = language_model(tmp_path / "run", folders, layer, batch=16)
    with pytest.raises(cli.UsageError, match="group_rows is 16; allowed: a divisor of the batch's 8 rows"):
        recording.record(run.run_dir, documents=2, rows=8)


def test_layers_are_named_in_the_order_of_the_model():
    names = recording._names([("blocks/layer_10/feed_forward", -1), ("blocks/layer_2/feed_forward", -1)])
    assert list(names.values()) == ["layer_2", "layer_10"]
    names = recording._names(
        [("query/encoder/block", 1), ("document/encoder/block", 0), ("query/encoder/block", 0)]
    )
    assert list(names.values()) == [
        "document/encoder/block 0",
        "query/encoder/block 0",
        "query/encoder/block 1",
    ]
