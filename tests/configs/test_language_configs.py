"""Every config in configs/language_model describes things that exist, in every variant that it offers."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from experiments import language
from experiments.language_settings import Batch, Evaluation
from language_model.causal import batch_shapes
from training.build import build, check_arguments, fill, locate
from training.loop import Schedule
from training.mesh import Layout
from training.rules import shardings
from training.task import TrainState

FOLDER = Path(__file__).parents[2] / "configs" / "language_model"
HELPERS = ("__init__", "parts")
VARIANTS = {
    "corpora": ["", "folders=a+/data/b,width=64,layers=2,length=32,batch=8,steps=5"],
    "mixture": ["", "experts=15,k=3,expert_width=64,shared=64,parts=4,capacity=1.25,domain_rows=8,even=1"],
}


def load(name, argument):
    return importlib.import_module(f"configs.language_model.{name}").get_config(argument)


def test_every_config_is_tried():
    assert {path.stem for path in FOLDER.glob("*.py")} - set(HELPERS) == set(VARIANTS)


@pytest.mark.parametrize(
    ("name", "argument"), [(n, a) for n, arguments in VARIANTS.items() for a in arguments]
)
def test_builds(name, argument):
    config = load(name, argument)
    assert json.loads(json.dumps(config.to_dict()))
    config = config.to_dict()
    assert locate(config["family"]) is language.Experiment
    assert set(language.FIELDS) <= set(config)
    task = build(config["task"])
    batch = fill(Batch, config["batch"], "batch")
    params, state = jax.eval_shape(task.init, jax.random.key(0), batch_shapes(batch.batch_size, batch.length))
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(params)) > 3e5
    jax.eval_shape(  # the layers' sums and the auxiliary go together
        lambda *given: task.loss(*given, jax.random.key(0), train=True),
        params,
        state,
        batch_shapes(batch.batch_size, batch.length),
    )
    assert isinstance(build(config["optimizer"]), optax.GradientTransformation)
    assert fill(Schedule, config["schedule"], "schedule").best_measure == language.BEST
    fill(Evaluation, config["evaluation"], "evaluation")
    layout = fill(Layout, config["mesh"], "config.mesh")
    shardings(TrainState((), params, state, ()), layout.mesh(), layout.parameters)  # every rule is of use
    arguments = {key: value for key, value in config["data"].items() if key not in ("name", "collections")}
    check_arguments(locate(config["data"]["name"]), {**arguments, "collections": {}}, "data")
    assert callable(build(config["tokenizer"]))


@pytest.mark.parametrize("name", VARIANTS)
def test_its_docstring_has_a_command(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert f"python -m experiments.train --config=configs/language_model/{name}.py" in text


def test_domains_are_named_by_their_folders():
    config = load("corpora", "folders=a+/data/b")
    assert {name: spec.folder for name, spec in config.data.collections.items()} == {"a": "a", "b": "/data/b"}
    assert list(load("corpora", "folders=/data/v1.2").data.collections) == ["v1_2"]
    for folders in ("a+/data/a", "a.b+a_b", ""):
        with pytest.raises(ValueError, match="allowed: folders of different names, joined by"):
            load("corpora", f"folders={folders}")
