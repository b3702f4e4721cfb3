"""The generative-retrieval configs of collections describe things that exist, with every scheme."""

import json

import jax
import optax
import pytest

from configs.generative_retrieval import beir_folder, continual, fairytaleqa, medquad, parts
from experiments import generative, settings
from experiments.generative_settings import Batch, Docids, Evaluation, Indexing, Text
from generative_retrieval.task import smallest_batch
from training.build import build, fill, locate
from training.loop import Schedule
from training.mesh import Layout
from training.rules import shardings
from training.task import TrainState

TRIED = [
    *((medquad, f"scheme={scheme}") for scheme in parts.SCHEMES),
    (medquad, "vectors=runs/a,generated=queries.jsonl,span=16,beams=20,layers=1,steps=5"),
    (fairytaleqa, ""),
    (beir_folder, "folder=/data/mine"),
]


def check(config):
    config = json.loads(json.dumps(config.to_dict()))
    assert locate(config["family"]) is generative.Experiment
    assert set(generative.FIELDS) <= set(config)
    task = build(config["task"])
    params, state = jax.eval_shape(task.init, jax.random.key(0), smallest_batch(task.model))
    layout = fill(Layout, config["mesh"], "config.mesh")
    shardings(TrainState((), params, state, ()), layout.mesh(), layout.parameters)  # every rule is of use
    assert isinstance(build(config["optimizer"]), optax.GradientTransformation)
    evaluation = settings.evaluation(config["evaluation"], "evaluation", Evaluation)
    assert fill(Schedule, config["schedule"], "schedule").best_measure.endswith(evaluation.dev_measures[0])
    fill(Batch, config["batch"], "batch")
    fill(Text, config["text"], "text")
    return fill(Docids, build(config["docids"]), "docids"), fill(
        Indexing, build(config["indexing"]), "indexing"
    )


@pytest.mark.parametrize(("module", "argument"), TRIED)
def test_builds(module, argument):
    docids, indexing = check(module.get_config(argument))
    assert docids.extends == ""
    assert {"first_tokens", "queries"} <= set(indexing.sources)


def test_a_continual_run_is_the_earlier_one_but_for_what_is_added(tmp_path):
    earlier = medquad.get_config("scheme=semantic,width=64").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    made = continual.get_config(f"run={tmp_path},documents=more.jsonl,replay=0.25,steps=7,generated=g.jsonl")
    docids, indexing = check(made)
    assert (docids.extends, indexing.replay, indexing.sources.keys()) == (
        str(tmp_path), 0.25, {"first_tokens", "queries", "generated"}
    )  # fmt: skip
    now, before = made.to_dict(), json.loads(json.dumps(earlier))
    assert {key for key in before if json.loads(json.dumps(now[key])) != before[key]} == {
        "data", "tokenizer", "docids", "indexing", "init_from", "optimizer", "schedule"
    }  # fmt: skip
    assert now["data"]["of"] == before["data"]
    assert now["tokenizer"]["path"] == str(tmp_path / "tokenizer.json")


def test_what_arguments_refuse(tmp_path):
    with pytest.raises(ValueError, match="scheme='semantics'; allowed: semantic, semantic2d"):
        medquad.get_config("scheme=semantics")
    (tmp_path / "config.json").write_text('{"family": "experiments.language.Experiment"}')
    with pytest.raises(ValueError, match="it is no run of a generative retriever"):
        continual.get_config(f"run={tmp_path}")


def test_atomic_ids_have_room_for_more():
    spec, size = parts.scheme("atomic", vocab_size=10, capacity=50)
    assert (spec["capacity"], size) == (50, 51)
