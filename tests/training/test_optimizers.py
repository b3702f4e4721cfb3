import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training.build import build
from training.optimizers import all_but, by_path, clipped, matrices, scaled

PARAMS = {
    "embed": {"table": jnp.ones((2, 2))},
    "layers": {"norm": {"scale": jnp.ones((3, 2))}, "kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))},
    "log_temperature": jnp.ones(()),
}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def step(optimizer):
    updates, _ = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
    return updates


def test_clips_before_the_optimizer():
    optimizer = clipped(optax.sgd(1.0), max_norm=1.0)
    params = {"w": jnp.zeros(2)}
    updates, _ = optimizer.update({"w": jnp.array([3.0, 4.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_a_norm_that_is_not_positive_is_refused(max_norm):
    with pytest.raises(ValueError, match="max_norm is"):
        clipped(optax.sgd(1.0), max_norm=max_norm)


def test_groups_by_path_have_rates_of_their_own_and_can_be_frozen():
    updates = step(
        build(
            dict(
                name="training.optimizers.by_path",
                rules=(
                    ("embed", dict(name="optax.set_to_zero")),
                    (
                        "kernel$",
                        dict(
                            name="training.optimizers.scaled",
                            factor=0.5,
                            optimizer=dict(name="optax.sgd", learning_rate=1.0),
                        ),
                    ),
                    (".*", dict(name="optax.sgd", learning_rate=1.0)),
                ),
            )
        )
    )
    np.testing.assert_array_equal(updates["embed"]["table"], np.zeros((2, 2)))
    np.testing.assert_array_equal(updates["layers"]["kernel"], np.full((3, 2, 2), -0.5))
    np.testing.assert_array_equal(updates["layers"]["bias"], np.full((3, 2), -1.0))


def test_clipping_inside_a_group_leaves_out_what_is_frozen():
    rules = [("^(?!log)", optax.set_to_zero()), (".*", clipped(optax.sgd(1.0), max_norm=1.0))]
    # The gradient of the one scalar that is trained has norm 1: nothing to clip. Over all it is sqrt(29).
    np.testing.assert_allclose(step(by_path(rules))["log_temperature"], -1.0)
    outside = clipped(by_path([("^(?!log)", optax.set_to_zero()), (".*", optax.sgd(1.0))]), max_norm=1.0)
    np.testing.assert_allclose(step(outside)["log_temperature"], -(29**-0.5), rtol=1e-6)


def test_a_parameter_without_a_rule_and_a_rule_without_a_parameter_are_refused():
    with pytest.raises(ValueError, match="no rule is for the parameter layers/bias"):
        by_path([("embed|kernel|norm|log", optax.sgd(1.0))]).init(PARAMS)
    with pytest.raises(ValueError, match="'embde' is the first rule of no parameter"):
        by_path([("embde", optax.set_to_zero()), (".*", optax.sgd(1.0))]).init(PARAMS)
    with pytest.raises(ValueError, match="rules is empty"):
        by_path([])
    with pytest.raises(ValueError, match=r"rules\[0\] is .* not an optax transformation"):
        by_path([(".*", optax.adamw)])


def test_only_tables_and_kernels_decay():
    mask = matrices(PARAMS)
    assert mask["embed"]["table"]
    assert mask["layers"]["kernel"]
    assert not any([mask["layers"]["norm"]["scale"], mask["layers"]["bias"], mask["log_temperature"]])
    assert not matrices(PARAMS, also_not=("embed",))["embed"]["table"]
    decayed = step(
        build(
            dict(
                name="optax.adamw",
                learning_rate=1.0,
                weight_decay=0.5,
                mask=dict(name="training.optimizers.matrices"),
            )
        )
    )
    np.testing.assert_allclose(decayed["layers"]["kernel"], -1.5, rtol=1e-5)
    np.testing.assert_allclose(decayed["layers"]["norm"]["scale"], -1.0, rtol=1e-5)


def test_a_mask_by_patterns():
    mask = all_but(PARAMS, patterns=("norm", "bias"))
    assert [mask["embed"]["table"], mask["layers"]["kernel"], mask["layers"]["bias"]] == [True, True, False]
    with pytest.raises(ValueError, match="patterns: 'nrom' is found in no parameter"):
        all_but(PARAMS, patterns=("nrom",))
    with pytest.raises(ValueError, match="is no regular expression"):
        all_but(PARAMS, patterns=("(",))


@pytest.mark.parametrize("name", ["optax.adamw", "optax.adafactor", "optax.lion"])
def test_the_optimizers_that_configs_name(name):
    updates = step(clipped(build(dict(name=name, learning_rate=0.1)), max_norm=1.0))
    assert all(bool(jnp.all(x < 0)) for x in jax.tree.leaves(updates))


def test_scaled_by_hand():
    np.testing.assert_allclose(step(scaled(optax.sgd(0.1), factor=3.0))["log_temperature"], -0.3, rtol=1e-6)
