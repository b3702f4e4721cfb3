import dataclasses
import functools

import optax
import pytest
from flax import linen as nn

from training.build import SpecError, build


@dataclasses.dataclass
class Box:
    content: object
    size: int = 1


def takes_arrays(x, *, scale):
    return x * scale


def test_builds_nested_specs_inside_out():
    spec = {
        "name": "optax.adamw",
        "learning_rate": {
            "name": "optax.linear_schedule",
            "init_value": 0.0,
            "end_value": 2.0,
            "transition_steps": 4,
        },
    }
    optimizer = build(spec)
    assert isinstance(optimizer, optax.GradientTransformation)
    schedule = build(spec["learning_rate"])
    assert float(schedule(2)) == 1.0


def test_a_function_that_still_waits_for_arguments_becomes_a_partial():
    scaled = build({"name": f"{__name__}.takes_arrays", "scale": 3})
    assert isinstance(scaled, functools.partial)
    assert scaled(2) == 6


def test_builds_inside_sequences_and_plain_mappings():
    module = build({"name": "flax.linen.Dense", "features": 3})
    assert isinstance(module, nn.Dense)
    built = build([{"a": {"name": "flax.linen.Dense", "features": 3}}, 5])
    assert isinstance(built[0]["a"], nn.Dense)
    assert built[1] == 5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "optax.adamww"}, "did you mean adamw"),
        ({"name": "optx.adamw"}, "no module 'optx'"),
        ({"name": "adamw"}, "expected a dotted path"),
        ({"name": 3}, "expected a dotted path"),
        ({"name": "optax.adamw", "learning_rat": 1e-3}, "config.learning_rat: .* did you mean learning_rate"),
        ({"name": "flax.linen.Dense", "featurs": 3}, "did you mean features"),
        ({"name": "flax.linen.Dense"}, "needs features"),
        ({"name": "flax.linen.Dense", "features": 3, "parent": None}, "takes no 'parent'"),
        ({"name": "flax.__name__"}, "not callable"),
        ({"deep": {"name": "optax.nothing_like_it"}}, "config.deep.name"),
    ],
)
def test_refuses_what_it_cannot_build_and_names_what_is_valid(spec, message):
    with pytest.raises(SpecError, match=message):
        build(spec)


def test_an_import_error_inside_a_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_for_build.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        build({"name": "broken_for_build.anything"})
