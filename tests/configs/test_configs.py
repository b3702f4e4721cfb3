"""Every config in configs/dual_encoder describes things that exist, in every variant its docstring offers."""

import importlib.util
import json
import types
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from configs.dual_encoder.recipe import RECIPES
from corpora.tokens import TextSettings
from dual_encoder.task import SMALLEST_BATCH
from experiments.cli import UsageError
from experiments.settings import Batch, check_read
from training.build import SpecError, build, check_arguments, fill, locate
from training.loop import Schedule
from training.mesh import Layout
from training.rules import shardings
from training.task import Task, TrainState

ROOT = Path(__file__).parents[2]
VARIANTS = {
    "python_functions": ["", "root=/a,steps=10"],
    "triples": ["file=x", "file=x,negatives=0,limit=9,dev=0.1,encoder=transformer,steps=7"],
    "msmarco": ["folder=x", "folder=x,test=dev,encoder=bag,negatives=2,steps=7,objective=blockwise"],
    "fairytaleqa": ["", "folder=x,steps=9"],
    "medquad": ["", "folder=x,steps=9"],
    "beir_folder": ["folder=x", "folder=x,encoder=transformer,steps=7,negatives=1,batch=8"],
    "mixture": ["", "folder=x,steps=7,batch=8,experts=4,balance=bias"],
    "nested": ["", "folder=x,documents=9,test=2,dev=3,width=192,layers=1,steps=7,batch=8,rate=0.1"],
    "recipe": ["", *(f"folder=x,recipe={name},run=y,steps=7,batch=8" for name in RECIPES)],
    "limit": ["", "pattern=cycle,n=30,k=3,queries=9,documents=99,width=64,steps=7,batch=8,train=test,seed=1"],
}
FILES = {path.stem: path for path in sorted((ROOT / "configs/dual_encoder").glob("*.py"))}
HELPERS = ("__init__", "parts", "finetune")  # the last is tried with a folder, in test_published.py


def load(name, argument):
    spec = importlib.util.spec_from_file_location(f"config_{name}", FILES[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def test_every_config_is_tried():
    assert set(FILES) - set(HELPERS) == set(VARIANTS)


@pytest.mark.parametrize(
    ("name", "argument"), [(n, a) for n, arguments in VARIANTS.items() for a in arguments]
)
def test_builds(name, argument):
    config = load(name, argument)
    assert json.loads(json.dumps(config.to_dict()))
    config = config.to_dict()
    task: Task = build(config["task"])
    params, _ = jax.eval_shape(lambda: task.init(jax.random.key(0), SMALLEST_BATCH))
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(params)) > 1e6
    assert isinstance(build(config["optimizer"]), optax.GradientTransformation)
    check_arguments(Schedule, config["schedule"], "schedule")
    layout = fill(Layout, config["mesh"], "config.mesh")
    state = TrainState(0, params, {}, params)
    if layout.parameters:  # every rule is of use
        shardings(state, layout.mesh(), layout.parameters)
    check_arguments(TextSettings, config["text"], "text")
    assert callable(locate(config["family"]))
    arguments = {key: value for key, value in config["data"].items() if key != "name"}
    check_arguments(locate(config["data"]["name"]), arguments, "data")
    check_named(config["tokenizer"])
    check_read(types.SimpleNamespace(**{**vars(Batch(1)), **config["batch"]}), task.reads)
    for name in ("pairs", "negatives", "teacher", "targets"):
        check_named(config["batch"].get(name))
    for spec in config["evaluation"]["bm25_grid"]["analyzers"].values():
        assert build(spec)("Some words") != []


def check_named(spec):
    """Every name in a spec is there and takes its arguments; nothing is built, as it may open a run."""
    if isinstance(spec, dict):
        if "name" in spec:
            arguments = {key: value for key, value in spec.items() if key != "name"}
            check_arguments(locate(spec["name"]), arguments, spec["name"])
        spec = list(spec.values())
    for part in spec if isinstance(spec, (list, tuple)) else ():
        check_named(part)


def test_negatives_that_a_recipe_does_not_read_are_refused(tmp_path):
    config = load("recipe", "folder=x,recipe=dynamic,run=y,negatives=2,batch=8").to_dict()
    with pytest.raises(UsageError, match=r"config.batch.negatives is given and nothing reads it"):
        locate(config["family"])(config, tmp_path)


@pytest.mark.parametrize("name", VARIANTS)
def test_its_docstring_has_a_command(name):
    text = FILES[name].read_text()
    assert "python -m experiments.train" in text
    assert str(FILES[name].relative_to(ROOT)) in text


def test_a_wrong_variant_is_refused():
    with pytest.raises(ValueError, match="encoder='bagg'; allowed: bag, transformer"):
        load("beir_folder", "encoder=bagg")
    with pytest.raises(ValueError, match="objective='block'; allowed: whole, blockwise"):
        load("beir_folder", "objective=block")
    with pytest.raises(SpecError, match="segment_weigts"):
        build({"name": "backbones.bag.BagOfSubwords", "segment_weigts": ()})
