"""Every field of a config that has a range is refused outside it, before anything is read or trained."""

import importlib.util
from pathlib import Path

import pytest

from experiments.cli import UsageError
from experiments.contrastive import Experiment
from training.build import SpecError
from training.checkpoints import CheckpointError

FILE = Path(__file__).parents[2] / "configs" / "dual_encoder" / "python_functions.py"


def config():
    spec = importlib.util.spec_from_file_location("python_functions_config", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().to_dict()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task.temperature", -1.0, "config.task: temperature is -1.0; it must be positive"),
        ("optimizer.max_norm", 0.0, "config.optimizer: max_norm is 0.0; it must be positive"),
        ("task.model.query.encoder.token_dropout", 2.0, "query.encoder: token_dropout is 2.0; allowed"),
        ("schedule.total_steps", 0, "config.schedule: total_steps is 0; it must be at least 1"),
        ("schedule.best_measure", "dev/foo", "best_measure is 'dev/foo'; allowed: dev/mrr@10, dev/ndcg@10"),
        ("batch.batch_size", 0, "config.batch: batch_size is 0; it must be at least 1"),
        ("batch.neighbours", 4, "config.batch.neighbours: .* did you mean neighbors"),
        ("batch.negatives_per_query", 1, "config.batch: negatives_per_query is 1 and negatives is not given"),
        (
            "batch",
            {
                "batch_size": 8,
                "negatives_per_query": 3,
                "negatives": {"name": "dual_encoder.negatives.bm25", "count": 2},
            },
            "config.batch: negatives.count is 2; it must be at least negatives_per_query, 3",
        ),
        (
            "batch.teacher",
            {"name": "dual_encoder.scorers.bm25"},
            "config.batch.teacher is given and nothing reads it; it needs an objective .* names teacher",
        ),
        (
            "batch.targets",
            {"name": "dual_encoder.scorers.bm25"},  # what gives targets opens a run
            "config.batch.targets is given and nothing reads it; it needs an objective .* names target",
        ),
        (
            "batch.groups",
            {"name": "dual_encoder.topics.collections"},
            "config.batch.groups is given and nothing reads it; it needs group_rows, or a config.task",
        ),
        ("batch.group_weights", (1.0,), "config.batch: group_weights is given and group_rows is 0"),
        ("batch.margin_bins", 5, "config.batch: margin_bins is 5; allowed: 0, or with negatives"),
        ("batch.length_window", -1, "config.batch: length_window is -1; it must be at least 0"),
        ("batch.length_window", 2, "config.batch: length_window is 2 and neighbors 4; allowed"),
        ("text.passage_stride", 999, "config.text: passage_stride is 999; allowed: 0 to 112"),
        (
            "text.query_template",
            "query:",
            r"config.text: query_template is 'query:': \{text\} occurs 0 times",
        ),
        ("text.query_length", 0, "config.text: query_length is 0; it must be at least 1"),
        ("evaluation.measures", ("ndgc@10",), "config.evaluation: measure 'ndgc@10' is unknown"),
        (
            "evaluation.fusion_weights",
            (0.5, 1.5),
            "evaluation: fusion_weights has 1.5; allowed: 0 to 1",
        ),
        ("evaluation.run_depth", 0, "config.evaluation: run_depth is 0"),
        ("evaluation.bm25_grid.b", (1.5,), "config.evaluation.bm25_grid: b is 1.5; allowed: 0 to 1"),
        ("evaluation.bm25_plain.k1", -1.0, "config.evaluation: k1 is -1.0; allowed: 0 or more"),
        ("evaluation.bm25_plain.k_1", 1.0, "bm25_plain.k_1: .* did you mean k1"),
        ("evaluation.bm25_grid.k1", (), "config.evaluation.bm25_grid: k1 is empty"),
        ("evaluation.bm25_plain.analyzer.stemmer", "snow", "config.evaluation.*: stemmer is 'snow'; allowed"),
        ("mesh.axes.data", 0, "config.mesh: axes.data is 0; allowed: a positive integer, or -1"),
        ("mesh.axes.data", 16, "config.mesh: mesh data=16 needs 16 devices; there are 8"),
        ("mesh.axes.pipe", 2, "config.mesh: axes has 'pipe'; allowed: replica, data, fsdp, tensor, expert"),
        (
            "mesh.parameters",
            (("a", ("data", "data")),),
            "config.mesh: parameters: .* names a mesh axis twice",
        ),
        ("mesh.parameters", (("a", ("dta",)),), r"config.mesh: parameters: .* names 'dta'; allowed: replica"),
        ("mesh.activations", (("(", ()),), r"config.mesh: activations: '\(' is no regular expression"),
        ("batch.batch_size", 12, "config.mesh: batch_size has 12 rows, which 8 parts of a batch"),
        ("init_from", {"run": "", "rules": [["(", None]]}, r"init_from.rules: '\(' is no regular expression"),
        ("init_from", {"run": "", "rules": [["a", 5]]}, r"rules has \['a', 5\]; allowed: \(regular"),
        ("init_from", {"run": "/nowhere", "rules": []}, "no best checkpoint in /nowhere/checkpoints"),
        ("seed", 2**32, "config.seed is 4294967296; allowed: 0 to 4294967295"),
        ("data.root", "/nowhere", "data.root: no such file or folder: '/nowhere'"),
    ],
)
def test_a_bad_value_names_field_value_and_what_is_allowed(tmp_path, field, value, message):
    changed = config()
    *path, last = field.split(".")
    node = changed
    for key in path:
        node = node[key]
    node[last] = value
    with pytest.raises((SpecError, UsageError, CheckpointError, ValueError), match=message):
        Experiment(changed, tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_incomplete_optimizer_is_refused(tmp_path):
    changed = config()
    changed["optimizer"] = {"name": "optax.adamw"}
    with pytest.raises(UsageError, match=r"config.optimizer is no optax transformation"):
        Experiment(changed, tmp_path)


def test_a_learning_rate_of_another_length_than_the_training_is_warned_of(tmp_path, capsys):
    changed = config()
    changed["schedule"]["total_steps"] = 500
    changed["data"]["root"] = "/nowhere"
    with pytest.raises(ValueError, match=r"data\.root"):
        Experiment(changed, tmp_path)
    said = "learning_rate.total_steps is 108 and config.schedule.total_steps 500"
    assert said in capsys.readouterr().out
