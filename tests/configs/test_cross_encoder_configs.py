"""Every config in configs/cross_encoder describes things that exist, in every variant of its docstring."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from corpora.sources import beir_folder
from cross_encoder.pairs import PairSettings
from cross_encoder.task import smallest_batch
from experiments.cross_encoder_settings import Evaluation
from experiments.settings import evaluation
from training.build import SpecError, build, check_arguments, fill, locate
from training.loop import Schedule
from training.mesh import Layout
from training.rules import shardings
from training.task import TrainState

ROOT = Path(__file__).parents[2]
VARIANTS = {
    "beir_folder": [
        "folder=x",
        "folder=x,objective=localized_contrastive,steps=7,batch=8,negatives=2,width=128,layers=2,document=50,depth=9",
    ],
    "medquad": ["", "folder=x,steps=9,objective=localized_contrastive"],
}
FILES = {path.stem: path for path in sorted((ROOT / "configs/cross_encoder").glob("*.py"))}


def load(name, argument):
    spec = importlib.util.spec_from_file_location(f"cross_encoder_config_{name}", FILES[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def test_every_config_is_tried():
    assert set(FILES) - {"__init__", "parts"} == set(VARIANTS)


@pytest.mark.parametrize(("name", "argument"), [(n, a) for n, of in VARIANTS.items() for a in of])
def test_builds(name, argument):
    config = load(name, argument).to_dict()
    assert json.loads(json.dumps(config))
    task = build(config["task"])
    params, _ = jax.eval_shape(lambda: task.init(jax.random.key(0), smallest_batch(task.model)))
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(params)) > 1e6
    layout = fill(Layout, config["mesh"], "config.mesh")
    shardings(TrainState(0, params, {}, params), layout.mesh(), layout.parameters)  # every rule is of use
    check_arguments(Schedule, config["schedule"], "schedule")
    assert fill(PairSettings, config["text"], "text").mark_matches
    assert evaluation(config["evaluation"], "evaluation", Evaluation).depth in (9, 100)
    arguments = {key: value for key, value in config["data"].items() if key != "name"}
    check_arguments(beir_folder.load, arguments, "data")
    assert callable(build(config["tokenizer"]))
    assert callable(build(config["batch"])["negatives"])
    assert callable(locate(config["family"]))


@pytest.mark.parametrize("name", VARIANTS)
def test_its_docstring_has_a_command(name):
    text = FILES[name].read_text()
    assert "python -m experiments.train" in text
    assert str(FILES[name].relative_to(ROOT)) in text


@pytest.mark.parametrize(
    ("argument", "message"),
    [("objective=nope", "allowed: pointwise, localized_contrastive"), ("steps=1", "it must be at least 2")],
)
def test_wrong_arguments(argument, message):
    with pytest.raises((ValueError, SpecError), match=message):
        load("beir_folder", f"folder=x,{argument}")
