"""The generative-retrieval configs of collections describe things that exist, with every scheme."""

import json

import jax
import optax
import pytest

from configs.generative_retrieval import beir_folder, continual, fairytaleqa, medquad, parts, variants
from experiments import generative, planning, settings
from experiments.generative_settings import Docids, Evaluation, Indexing, Text
from generative_retrieval.task import smallest_batch
from training.build import build, fill, locate
from training.loop import Schedule
from training.mesh import Layout
from training.rules import shardings
from training.task import TrainState

TRIED = [
    *((medquad, f"scheme={scheme}") for scheme in parts.SCHEMES),
    (medquad, "scheme=semantic,vectors=runs/a,generated=queries.jsonl,span=16,beams=20,layers=1,steps=5"),
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
    fill(settings.Rows, config["batch"], "batch")
    rows, length = planning.batch_shapes(config)["targets"]
    assert rows == config["batch"]["batch_size"]
    assert length >= 1
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


def test_the_length_penalty_is_that_of_titles():
    penalty = lambda argument: medquad.get_config(argument).evaluation.length_penalty
    assert [penalty(x) for x in (None, "scheme=naive", "scheme=naive,penalty=0.3", "penalty=0")] == [
        0.5, 0.0, 0.3, 0.0
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "scheme"), [("joint", "titles"), ("prefix_aware", "semantic2d"), ("one_vector", "atomic")]
)
def test_a_variant_is_the_plain_config_but_for_its_task(variant, scheme):
    plain = medquad.get_config(f"scheme={scheme},penalty=0,copy=0").to_dict()
    made = variants.get_config(f"variant={variant}").to_dict()
    assert {key for key in plain if plain[key] != made[key]} <= {"task", "mesh"}


def test_atomic_ids_have_room_for_more():
    spec, size, length = parts.scheme("atomic", vocab_size=10, capacity=50)
    assert (spec["capacity"], size, length) == (50, 51, 1)


def test_how_long_ids_are_without_data():
    lengths = lambda capacity: {
        name: parts.scheme(name, vocab_size=9, capacity=capacity, branching=10)[2]
        for name in ("naive", "semantic", "semantic2d", "residual", "titles")
    }
    # up to 999 and END; two clusters and a number; three codes and a number; twelve tokens and a number
    assert lengths(1_000) == dict(naive=4, semantic=3, semantic2d=3, residual=4, titles=13)
    assert (lengths(1_001)["naive"], lengths(1_001)["semantic"]) == (5, 4)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "scheme=random,vectors=runs/a",
            "vectors='runs/a' with scheme='random'; allowed: vectors with semantic",
        ),
        ("scheme=naive,copy=1", "copy=1 with scheme='naive'; allowed: copy with titles, urls, first_tokens"),
    ],
)
def test_an_argument_that_a_scheme_does_not_read_is_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        medquad.get_config(argument)
