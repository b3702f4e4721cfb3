import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from training.build import SpecError
from training.mesh import Layout
from training.rules import shardings
from training.task import begin

RULES = (
    ("query/kernel", ("fsdp", "tensor")),
    ("kernel", ("tensor", "fsdp")),
    ("table", ("fsdp",)),
)
PARAMS = {
    "layers": {"query": {"kernel": np.zeros((3, 4, 8))}, "out": {"kernel": np.zeros((3, 8, 4))}},
    "table": np.zeros((5, 4)),
    "scale": np.zeros((7,)),
}


def mesh():
    return Layout({"data": 2, "fsdp": 2, "tensor": 2}).mesh()


def specs(tree):
    return jax.tree.map(lambda sharding: sharding.spec, tree)


def state(optimizer, average=False):
    return jax.eval_shape(lambda params: begin(optimizer, params, {"count": 0}, average=average), PARAMS)


def test_the_first_rule_found_counts_and_holds_for_stacked_layers():
    found = specs(shardings(state(optax.sgd(0.1), average=True), mesh(), RULES))
    expected = {
        "layers": {
            "query": {"kernel": P(None, "fsdp", "tensor")},
            "out": {"kernel": P(None, "tensor", "fsdp")},
        },
        "table": P(None, "fsdp"),
        "scale": P(),
    }
    assert found.params == found.average == expected
    assert (found.step, found.state) == (P(), {"count": P()})


def test_the_optimizers_state_lies_as_its_parameter():
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.1, mask={"layers": True, "table": False, "scale": True})
    )
    placed = shardings(state(optimizer), mesh(), RULES)
    adam = placed.opt_state[1][0]
    assert specs(adam.mu) == specs(adam.nu) == specs(placed.params)
    assert adam.count.spec == P()


def test_factored_moments_keep_the_axes_that_they_have_left():
    optimizer = optax.adafactor(0.1, min_dim_size_to_factor=4)
    placed = shardings(state(optimizer), mesh(), RULES)
    shapes = state(optimizer)
    (factored,) = (
        s
        for s in jax.tree.leaves(shapes.opt_state, is_leaf=lambda x: hasattr(x, "v_row"))
        if hasattr(s, "v_row")
    )
    (found,) = (
        s
        for s in jax.tree.leaves(placed.opt_state, is_leaf=lambda x: hasattr(x, "v_row"))
        if hasattr(s, "v_row")
    )
    # Of [3, 4, 8] as (None, fsdp, tensor): without the last axis, and without the middle one.
    kept = {
        factored.v_row["layers"]["query"]["kernel"].shape,
        factored.v_col["layers"]["query"]["kernel"].shape,
    }
    assert kept == {(3, 4), (3, 8)}
    for moment, shape in ((found.v_row, factored.v_row), (found.v_col, factored.v_col)):
        spec = moment["layers"]["query"]["kernel"].spec
        assert (
            spec
            == {(3, 4): P(None, "fsdp"), (3, 8): P(None, "tensor")}[shape["layers"]["query"]["kernel"].shape]
        )
    assert found.v["scale"].spec == P()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("kernels", ("fsdp",)), "'kernels' is found in no parameter; there are layers/out/kernel"),
        (
            ("scale", ("fsdp",)),
            r"parameter scale has shape \(7,\); mesh axis fsdp=2 does not divide its axis 0, 7",
        ),
        (("scale", ("fsdp", None)), r"parameter scale has shape \(7,\).* at most 1"),
    ],
)
def test_a_rule_that_does_not_fit_names_parameter_shape_and_axis(rule, message):
    with pytest.raises(SpecError, match=f"config.mesh.parameters: .*{message}"):
        shardings(state(optax.sgd(0.1)), mesh(), [*RULES, rule])


def test_the_tasks_state_lies_as_its_own_rules_say():
    shapes = begin(optax.sgd(1.0), PARAMS, {"own": {"vectors": np.zeros((16, 3)), "next": np.zeros(())}})
    found = shardings(shapes, mesh(), RULES, of_state=(("own/vectors", ("batch", None)),))
    assert specs(found.state) == {
        "own": {"vectors": P(("replica", "data", "fsdp", "expert"), None), "next": P()}
    }
    assert specs(shardings(shapes, mesh(), RULES).state) == {"own": {"vectors": P(), "next": P()}}
