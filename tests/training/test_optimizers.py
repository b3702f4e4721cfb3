import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training import mesh as meshes
from training.build import build
from training.optimizers import all_but, by_path, clipped, matrices, scaled, stacked
from training.rules import shardings
from training.task import TrainState

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


LAYERS, EXPERTS, ROWS, COLUMNS = 2, 6, 3, 4
SPARSE = {
    "block": {
        "router": {"score": {"kernel": jnp.ones((LAYERS, ROWS, EXPERTS))}},
        "experts": {
            "in": jax.random.normal(jax.random.key(0), (LAYERS, EXPERTS, ROWS, COLUMNS)),
            "in_bias": jax.random.normal(jax.random.key(1), (LAYERS, EXPERTS, COLUMNS)),
        },
    }
}
ADAFACTOR = dict(name="optax.adafactor", learning_rate=0.1, min_dim_size_to_factor=2)


def normal_like(tree, seed):
    keys = iter(jax.random.split(jax.random.key(seed), 10))
    return jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), tree)


def two_steps(optimizer, params, *grads):
    state = optimizer.init(params)
    for one in grads:
        updates, state = optimizer.update(one, state, params)
    return updates


@jax.jit
def of_stacked(grads, more):
    return two_steps(stacked(build(ADAFACTOR), axes=2), SPARSE["block"]["experts"], grads, more)


def test_factored_moments_of_an_expert_are_its_own():
    experts = SPARSE["block"]["experts"]
    grads, more = normal_like(experts, 2), normal_like(experts, 3)
    found = of_stacked(grads, more)
    at = lambda tree, y, e: jax.tree.map(lambda x: x[y, e], tree)
    alone = jax.jit(lambda *given: two_steps(build(ADAFACTOR), *given))
    for y in range(LAYERS):
        for e in range(EXPERTS):
            expected = alone(at(experts, y, e), at(grads, y, e), at(more, y, e))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), at(found, y, e), expected)
    # Without it, the two largest axes are factored, E = 6 and F = 4, and an expert's step depends on others.
    other = jax.tree.map(lambda x: x.at[:, 1].multiply(3.0), grads)
    plain = [two_steps(build(ADAFACTOR), experts, g)["in"][0, 0] for g in (grads, other)]
    assert np.abs(plain[0] - plain[1]).max() > 1e-3
    changed = of_stacked(other, more)
    np.testing.assert_array_equal(changed["in"][:, 2:], found["in"][:, 2:])


def test_what_is_kept_for_experts_lies_as_they_do():
    optimizer = by_path((("experts/", stacked(build(ADAFACTOR), axes=2)), (".*", build(ADAFACTOR))))
    params = {"model": SPARSE}
    shapes = jax.eval_shape(lambda: TrainState((), params, {}, optimizer.init(params)))
    mesh = meshes.Layout({"data": 4, "expert": 2}).mesh()
    rules = [("experts/in$", ("expert", None, None)), ("experts/in_bias$", ("expert", None))]
    placed = shardings(shapes, mesh, rules)
    found = {
        leaf.shape: sharding.spec
        for leaf, sharding in zip(
            jax.tree.leaves(shapes.opt_state), jax.tree.leaves(placed.opt_state), strict=True
        )
    }
    assert found[LAYERS, EXPERTS, ROWS][1] == "expert"  # the moments of rows
    assert found[LAYERS, EXPERTS, COLUMNS][1] == "expert"


def test_a_stack_needs_its_axes():
    with pytest.raises(ValueError, match="axes is 0; allowed: an integer of at least 1"):
        stacked(optax.sgd(1.0), axes=0)
    with pytest.raises(ValueError, match=r"axes is 2; allowed for bias of shape \(3,\): at most 1"):
        stacked(optax.sgd(1.0), axes=2).init({"bias": jnp.ones(3)})


def test_a_router_has_a_rate_and_a_decay_of_its_own_and_can_be_frozen():
    grads = jax.tree.map(jnp.ones_like, SPARSE)
    update = lambda optimizer: optimizer.update(grads, optimizer.init(SPARSE), SPARSE)[0]["block"]
    rest = (".*", optax.sgd(1.0))
    slow = update(by_path((("router/score", optax.sgd(0.1)), rest)))
    np.testing.assert_allclose(slow["router"]["score"]["kernel"], -0.1, rtol=1e-6)
    np.testing.assert_array_equal(slow["experts"]["in"], -1.0)
    frozen = update(by_path((("router/score", optax.set_to_zero()), rest)))
    np.testing.assert_array_equal(frozen["router"]["score"]["kernel"], 0.0)
    np.testing.assert_array_equal(frozen["experts"]["in"], -1.0)
    mask = all_but(SPARSE, patterns=("router/score", "bias$"))
    decayed = update(optax.chain(optax.set_to_zero(), optax.add_decayed_weights(0.5, mask)))
    np.testing.assert_array_equal(decayed["router"]["score"]["kernel"], 0.0)
    np.testing.assert_array_equal(decayed["experts"]["in_bias"], 0.0)
    np.testing.assert_array_equal(decayed["experts"]["in"], 0.5 * SPARSE["block"]["experts"]["in"])
