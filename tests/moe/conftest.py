"""Shared by the tests of moe: variables that cost no compilation, and dispatchers against the oracle.

Dimensions: G groups of S tokens, E experts, K choices, D and F widths.
"""

import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import Routing, token_choice
from training.mesh import Layout

G, S, E, K, D, F = 8, 4, 4, 2, 5, 7


@pytest.fixture(scope="session")
def drawn():
    """The function `(module, *inputs) -> variables`, normal numbers of the shapes that init would give; a
    compiled init costs more than the layer itself."""

    def draw(module, *inputs, seed=0):
        numbers = np.random.default_rng(seed)
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        return jax.tree.map(lambda leaf: numbers.normal(size=leaf.shape).astype(leaf.dtype) * 0.6, shapes)

    return draw


@pytest.fixture(scope="session")
def routings():
    """By name: of G groups of S tokens to E experts."""
    random = np.random.default_rng(2)
    any_GSK, kept_GSK = _choices(0), random.random((G, S, K)) < 0.6
    return {
        "any": by_tokens(any_GSK),
        "one expert has all": by_tokens(np.tile([2, 0], (G, S, 1)), np.array([True, False])),
        "an expert has nothing, and edges are not kept": by_tokens(_choices(1, experts=E - 1), kept_GSK),
        "nothing is kept": by_tokens(any_GSK, False),
        "one group": by_tokens(any_GSK.reshape(1, G * S, K)),
        "experts choose": _by_experts(),
    }


def by_tokens(expert_GSK, keep=True):
    expert_GSK = jnp.asarray(expert_GSK, jnp.int32)
    weight_GSK = _draw(9, *expert_GSK.shape)
    return token_choice(expert_GSK, weight_GSK, jnp.broadcast_to(keep, expert_GSK.shape), E)


def _choices(seed, experts=E):
    """Each token's K experts, which differ."""
    random = np.random.default_rng(seed)
    return np.array([[random.permutation(experts)[:K] for _ in range(S)] for _ in range(G)])


def _by_experts():
    """Each expert has three tokens, which differ; edges come by expert."""
    random = np.random.default_rng(4)
    return Routing(
        token=jnp.asarray([[t for _ in range(E) for t in random.permutation(S)[:3]] for _ in range(G)]),
        expert=jnp.broadcast_to(jnp.arange(E, dtype=jnp.int32).repeat(3)[None], (G, 3 * E)),
        weight=_draw(9, G, 3 * E),
        keep=jnp.asarray(random.random((G, 3 * E)) < 0.8),
        logits=None,
        probabilities=None,
        num_experts=E,
        num_tokens=S,
    )


def _draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _compiled(dispatcher, x_GSD, weights, weight_GR, routing):
    def layer(x_GSD, weights, weight_GR):
        plan = dispatcher.plan(routing.replace(weight=weight_GR), train=True)
        hidden = plan.dispatch(x_GSD).matmul(weights["in"]).add(weights["b"])
        hidden = hidden.map(lambda gate, x: jnp.tanh(gate) * x, hidden)
        return plan.combine(hidden.matmul(weights["out"])), plan.keep

    y_GSD, pull, keep_GR = jax.vjp(layer, x_GSD, weights, weight_GR, has_aux=True)
    return y_GSD, pull(_draw(5, *y_GSD.shape).astype(y_GSD.dtype)), keep_GR


@pytest.fixture(scope="session")
def layer_of():
    """The function `(dispatcher, routing, dtype=float32) -> (compiled layer, its arguments)`; the layer gives
    y, the gradients of x, of the weights of experts and of those of edges, and who is served."""

    def layer_of(dispatcher, routing, dtype=jnp.float32):
        weights = {"in": _draw(1, E, D, F), "b": _draw(2, E, F), "out": _draw(3, E, F, D)}
        x_GSD = _draw(0, len(routing.token), routing.num_tokens, D).astype(dtype)
        return functools.partial(_compiled, dispatcher), (x_GSD, weights, routing.weight, routing)

    return layer_of


@pytest.fixture(scope="session")
def equal_to_oracle(layer_of):
    """The function `(dispatcher, oracle, routing, ...) -> results`, which compares them with the oracle's."""

    def close(a, b, tolerance):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert a.shape == b.shape
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b)), (a, b)

    def equal(dispatcher, oracle, routing, *, mesh=None, dtype=jnp.float32, tolerance=1e-5):
        layer, args = layer_of(oracle, routing, dtype)
        *expected, served = layer(*args)
        layer, args = layer_of(dispatcher, routing, dtype)
        with nullcontext() if mesh is None else jax.set_mesh(Layout(mesh).mesh()):
            *found, keep = layer(*args)
        np.testing.assert_array_equal(keep, served)
        jax.tree.map(functools.partial(close, tolerance=tolerance), found, expected)
        return *found, keep

    return equal
