"""The feed-forward contract and its dense forms, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import special

from moe import feed_forward
from moe.feed_forward import Context, Dense, Gated


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def inputs(train=False):
    x_BLD = draw(0, 2, 5, 6)
    return x_BLD, Context(valid=jnp.ones((2, 5), bool), train=train)


def assert_close(ours, oracle, tolerance=1e-5):
    assert np.max(np.abs(ours - oracle)) <= tolerance * np.max(np.abs(oracle))


def test_dense_is_two_products_with_gelu_between(drawn):
    x_BLD, context = inputs()
    layer = Dense(width=7, use_bias=True)
    params = drawn(layer, x_BLD, context, ())["params"]
    y_BLD, carry, aux = layer.apply({"params": params}, x_BLD, context, ())

    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    h = np.asarray(x_BLD, np.float64) @ p["in"]["kernel"] + p["in"]["bias"]
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    assert_close(y_BLD, h @ p["out"]["kernel"] + p["out"]["bias"])
    assert carry == ()
    assert aux == {}


def test_gated_is_swiglu(drawn):
    x_BLD, context = inputs()
    layer = Gated(width=7)
    params = drawn(layer, x_BLD, context, ())["params"]
    y_BLD, _, _ = layer.apply({"params": params}, x_BLD, context, ())

    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = np.asarray(x_BLD, np.float64)
    gate = x @ p["gate"]["kernel"]
    assert_close(y_BLD, (gate * special.expit(gate) * (x @ p["in"]["kernel"])) @ p["out"]["kernel"])
    assert set(p["in"]) == {"kernel"}, "no bias unless asked for"


@pytest.mark.parametrize("kind", [Dense, Gated])
def test_gradients_equal_those_of_the_formula(drawn, kind):
    """The backward pass keeps less than autodiff of the formula would; the gradients are the same."""
    x_BLD, context = inputs()
    layer = kind(width=7, use_bias=True)
    params = drawn(layer, x_BLD, context, ())["params"]

    def formula(params, x_BLD):
        product = lambda name, x: (
            jnp.einsum("blx,xy->bly", x, params[name]["kernel"]) + params[name]["bias"].reshape(1, 1, -1)
        )
        if kind is Dense:
            return product("out", nn.gelu(product("in", x_BLD)))
        return product("out", nn.silu(product("gate", x_BLD)) * product("in", x_BLD))

    ours = jax.grad(lambda p, x: jnp.sum(layer.apply({"params": p}, x, context, ())[0] ** 2), (0, 1))
    oracle = jax.grad(lambda p, x: jnp.sum(formula(p, x) ** 2), (0, 1))
    jax.tree.map(assert_close, *jax.jit(lambda *args: (ours(*args), oracle(*args)))(params, x_BLD))


@pytest.mark.parametrize("kind", [Dense, Gated])
def test_contract(drawn, kind):
    """Shape, dtype, carry; float32 parameters; the initial carry is had without parameters."""
    x_BLD, context = inputs()
    layer = kind(width=7)
    assert layer.initial_carry(x_BLD, context) == ()
    params = drawn(layer, x_BLD, context, ())
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    kept = {"anything": jnp.ones(3)}
    y_BLD, carry, aux = layer.apply(params, x_BLD.astype("bfloat16"), context, kept)
    assert y_BLD.shape == x_BLD.shape
    assert y_BLD.dtype == jnp.bfloat16
    assert carry is kept
    assert aux == {}


@pytest.mark.parametrize("kind", [Dense, Gated])
def test_dropout_only_in_training(drawn, kind):
    x_BLD, context = inputs()
    layer = kind(width=64, dropout=0.5)
    params = drawn(layer, x_BLD, context, ())
    plain = kind(width=64).apply(params, x_BLD, context, ())[0]
    np.testing.assert_array_equal(layer.apply(params, x_BLD, context, ())[0], plain)

    @jax.jit
    def dropped(seed):
        return layer.apply(params, *inputs(train=True), (), rngs={"dropout": jax.random.key(seed)})[0]

    np.testing.assert_array_equal(dropped(0), dropped(0))
    assert np.max(np.abs(dropped(0) - dropped(1))) > 0.01


def test_context_is_a_pytree_with_train_static():
    traced = []

    @jax.jit
    def f(context):
        traced.append(context.train)
        return context.valid.sum()

    for train in (True, False, True):
        f(inputs(train)[1])
    assert traced == [True, False]


def test_a_width_that_cannot_be_is_named():
    with pytest.raises(ValueError, match="width is 0"):
        Dense(width=0).init(jax.random.key(0), *inputs(), ())
    with pytest.raises(ValueError, match="width is -3"):
        feed_forward.check_width(-3)
