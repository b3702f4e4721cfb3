import jax.numpy as jnp
import numpy as np
import pytest

from moe.feed_forward import Context, Gated
from moe.shared import Weighted


@pytest.fixture
def params():
    """Of a layer with D = 4 and F = 5."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}
    return {"layer": {"gate": draw(4, 5), "in": draw(4, 5), "out": draw(5, 4)}, "weight": draw(4, 1)}


def test_the_layer_times_the_sigmoid_of_a_product(params):
    x_BLD = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 4)), jnp.float32)
    context = Context(valid=jnp.ones((2, 3), bool))
    y_BLD, carry, aux = Weighted(Gated(5)).apply({"params": params}, x_BLD, context, ())
    assert (carry, aux) == ((), {})

    inner_BLD = np.asarray(Gated(5).apply({"params": params["layer"]}, x_BLD, context, ())[0])
    weight_BL1 = 1 / (1 + np.exp(-np.asarray(x_BLD) @ np.asarray(params["weight"]["kernel"])))
    np.testing.assert_allclose(y_BLD, weight_BL1 * inner_BLD, rtol=1e-5, atol=1e-6)


def test_it_computes_in_the_dtype_of_its_input(params):
    context = Context(valid=jnp.ones((1, 2), bool))
    y_BLD = Weighted(Gated(5)).apply({"params": params}, jnp.ones((1, 2, 4), jnp.bfloat16), context, ())[0]
    assert y_BLD.dtype == jnp.bfloat16
