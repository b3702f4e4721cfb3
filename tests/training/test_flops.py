"""FLOPs against XLA's count before optimization, against numbers worked by hand, and loops unrolled."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from backbones import remat
from backbones.attention import SelfAttention
from backbones.blocks import PreNorm
from backbones.embedding import TokenEmbedding
from backbones.encoder import TransformerEncoder
from backbones.positions import rotary
from moe.feed_forward import Gated
from training import flops
from training import mesh as meshes


def abstract(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def xla(function, *args):
    analysis = jax.jit(function).lower(*args).cost_analysis()
    return analysis.get("flops", 0), analysis.get("transcendentals", 0)


X, Y, N, HALF = (
    abstract(6, 50),
    abstract(6, 50),
    abstract(6, 50, dtype=jnp.int32),
    abstract(6, 50, dtype="bfloat16"),
)
ROWS = abstract(7, 1, dtype=jnp.int32)
NHWC = ("NHWC", "HWIO", "NHWC")
UNARY = [
    "abs", "neg", "sign", "floor", "ceil", "round", "square", "is_finite", "reciprocal", "exp", "exp2",
    "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc", "erf_inv", "sin", "cos", "tan", "sqrt",
    "rsqrt", "cbrt",
]  # fmt: skip
AS_XLA = {
    **{name: (getattr(lax, name), X) for name in UNARY},
    **{name: (getattr(lax, name), X, Y) for name in ["add", "div", "rem", "max", "pow", "atan2", "ne", "ge"]},
    **{f"power {y}": (partial(lax.integer_pow, y=y), X) for y in (-3, -1, 0, 1, 2, 3, 4, 5, 7)},
    "integer exponent": (lax.pow, X, N),
    "bits": (lambda n: (lax.clz(n) ^ ~n) << lax.population_count(n), N),
    "choice": (lambda x, n: jnp.where(n > 0, x, 0.0), X, N),
    "clamp": (lambda x: lax.clamp(0.0, x, 1.0), X),
    "bfloat16": (lambda x: jnp.tanh(x).sum(1), HALF),
    "conversions": (lambda x, n: (x.astype(jnp.int32), x.astype(bool), n.astype(jnp.float32)), X, N),
    "moves": (lambda x: jnp.concatenate([x[::-1, 1:3], x[:, :5].T.reshape(6, 5)], axis=1), X),
    "reductions": (lambda x: (x.sum(), x.max(0), x.prod(1), (x > 0).any(1), (x > 0).all()), X),
    "argmax": (lambda x: (lax.argmax(x, 1, jnp.int32), lax.argmin(x, 0, jnp.int32)), X),
    "sort": (lambda x, n: lax.sort((x, n), num_keys=2), X, N),
    "softmax": (jax.nn.log_softmax, X),
    "dot": (jnp.dot, X, abstract(50, 9)),
    "two batch axes": (
        lambda a, b: jnp.einsum("abij,abkj->abik", a, b), abstract(2, 3, 4, 5), abstract(2, 3, 6, 5)
    ),
    "convolution": (
        lambda x, w: lax.conv_general_dilated(
            x, w, (2, 1), "SAME", rhs_dilation=(1, 2), feature_group_count=2, dimension_numbers=NHWC
        ),
        abstract(2, 9, 7, 4),
        abstract(3, 3, 2, 6),
    ),
    "transposed convolution": (
        lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=NHWC),
        abstract(2, 5, 4, 3),
        abstract(3, 3, 3, 6),
    ),
    "branches": (lambda x: lax.cond(x[0, 0] > 0, lambda x: jnp.exp(x) + x + x, lambda x: x * 2, x), X),
    **{
        f"{operation} {mode}": (partial(function, mode=mode), X, ROWS)
        for mode in ("clip", "fill", "promise_in_bounds")
        for operation, function in {
            "gather": lambda x, rows, mode: x.at[rows[:, 0]].get(mode=mode),
            "scatter": lambda x, rows, mode: x.at[rows[:, 0]].set(1.0, mode=mode),
            "scatter add": lambda x, rows, mode: x.at[rows[:, 0]].add(1.0, mode=mode),
            "scatter max": lambda x, rows, mode: x.at[rows[:, 0]].max(1.0, mode=mode),
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("case", AS_XLA)
def test_operations_equal_xla(case):
    function, *args = AS_XLA[case]
    counted = flops.count(function, *args)
    assert counted.uncounted == ()
    assert (counted.total, counted.transcendentals) == xla(function, *args)


LAYERS, WIDTH, HIDDEN, HEADS, BATCH, LENGTH = 3, 16, 24, 2, 4, 10
TOKENS = abstract(BATCH, LENGTH, dtype=jnp.int32)


class Model(nn.Module):
    encoder: nn.Module

    def __call__(self, tokens):
        encoded = self.encoder({"tokens": tokens, "mask": tokens > 0})
        return jnp.square(encoded.last).sum()


def transformer(**fields):
    block = PreNorm(
        attention=SelfAttention(heads=HEADS, rotate=partial(rotary)),
        feed_forward=Gated(width=HIDDEN),
    )
    model = Model(TransformerEncoder(TokenEmbedding(30, WIDTH), block, num_layers=LAYERS, **fields))
    params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    return model.apply, params


# Per layer 2 flops for each of 4 D D + 3 D F weights and each token, and for each of the two products of
# attention 2 flops for each of L L pairs and D columns.
LAYER_MATMUL = 2 * BATCH * LENGTH * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN) + 2 * 2 * BATCH * LENGTH**2 * WIDTH


def test_a_transformer_equals_xla_on_the_unrolled_one():
    forward, params = transformer(unroll=LAYERS)
    counted = flops.count(forward, params, TOKENS)
    assert (counted.total, counted.transcendentals) == xla(forward, params, TOKENS)
    assert counted.matmul == LAYERS * LAYER_MATMUL


def backward(forward):
    """The gradient for a given seed: XLA folds what is multiplied by a constant 1 as it reads the program."""
    return lambda params, tokens, seed: jax.vjp(lambda params: forward(params, tokens), params)[1](seed)


# What the backward pass of a layer multiplies again: attention's two products, where products with weights
# are kept; everything but the last product, which no gradient needs, where only inputs are kept.
AGAIN = {
    None: 0,
    remat.save_projections: 2 * 2 * BATCH * LENGTH**2 * WIDTH,
    remat.save_nothing: LAYER_MATMUL - 2 * BATCH * LENGTH * WIDTH * HIDDEN,
}


@pytest.mark.parametrize("policy", AGAIN)
def test_its_gradient_equals_xla(policy):
    forward, params = transformer(unroll=LAYERS, remat=policy and policy())
    counted = flops.count(backward(forward), params, TOKENS, abstract())
    assert (counted.total, counted.transcendentals) == xla(backward(forward), params, TOKENS, abstract())
    assert counted.matmul == LAYERS * (3 * LAYER_MATMUL + AGAIN[policy])
    assert counted.recomputed == LAYERS * AGAIN[policy]


@pytest.mark.parametrize("policy", [None, remat.save_nothing])
def test_scanned_layers_count_as_often_as_they_run(policy):
    counts = []
    for unroll in (1, LAYERS):
        forward, params = transformer(unroll=unroll, remat=policy and policy())
        gradient = jax.value_and_grad(forward)
        counts.append(flops.count(gradient, params, TOKENS))
        assert (xla(gradient, params, TOKENS)[0] < 0.5 * counts[0].total) == (unroll == 1)
    assert counts[0] == counts[1]


def test_loops_in_python_equal_scanned_ones():
    def body(x, _):
        return jnp.tanh(x @ x) + 1.0, None

    def python(x):
        for _ in range(5):
            x, _ = body(x, None)
        return x.sum()

    def scanned(x):
        return lax.scan(body, x, None, length=5)[0].sum()

    x = abstract(8, 8)
    assert flops.count(python, x) == flops.count(scanned, x)
    forward = flops.count(scanned, x)
    assert forward.matmul == 5 * 2 * 8**3
    assert forward.total == 5 * (2 * 8**3 + 8 * 8) + 63
    # Two products for each one forward.
    assert flops.count(jax.grad(scanned), x).matmul == 3 * forward.matmul


def test_the_turns_of_a_while_loop_are_said_to_be_unknown():
    def function(x):
        with jax.named_scope("search"):
            return lax.while_loop(lambda x: x.sum() < 9, lambda x: x * 2, x)

    counted = flops.count(function, X)
    assert counted.total == 300 + 299 + 1
    assert counted.uncounted == ("turns of a while loop after the first, in 'search'",)
    assert flops.table(counted)[-1] == "not counted: turns of a while loop after the first, in 'search'"
    known = flops.count(lambda x: lax.fori_loop(0, 7, lambda i, x: x * 2, x), X)
    assert (known.total, known.uncounted) == (7 * 300, ())


def test_unknown_primitives_are_named():
    counted = flops.count(lambda x: lax.lgamma(x + 1.0), X)
    assert counted.total == 300
    assert counted.uncounted == ("lgamma, in ''",)


def test_ragged_products_count_each_row_once():
    sizes = abstract(3, dtype=jnp.int32)
    x, w = abstract(10, 4), abstract(3, 4, 5)

    def function(x, w, sizes):
        return lax.ragged_dot(x, w, sizes).sum()

    assert flops.count(function, x, w, sizes).matmul == 2 * 10 * 4 * 5
    gradient = flops.count(jax.value_and_grad(function, argnums=(0, 1)), x, w, sizes)
    assert gradient.matmul == 3 * 2 * 10 * 4 * 5


def test_shard_map_counts_every_device():
    mesh = meshes.data_mesh()
    rows = PartitionSpec("data")

    @partial(jax.shard_map, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
    def product(x, w):
        return x @ w

    whole = flops.count(jnp.dot, abstract(16, 4), abstract(4, 5))
    assert flops.count(product, abstract(16, 4), abstract(4, 5)) == whole
    assert whole.total == 2 * 16 * 4 * 5


def test_a_kernel_counts_once_a_point_of_its_grid():
    def kernel(x, out):
        out[...] = x[...] @ x[...] + 1.0

    block = pl.BlockSpec((4, 4), lambda i: (i, 0))
    call = pl.pallas_call(kernel, out_shape=abstract(12, 4), grid=(3,), in_specs=[block], out_specs=block)
    counted = flops.count(call, abstract(12, 4))
    assert (counted.matmul, counted.total) == (3 * 2 * 4**3, 3 * (2 * 4**3 + 16))


def test_custom_derivatives_count_what_runs():
    @jax.custom_vjp
    def function(x):
        return x * 2.0

    function.defvjp(lambda x: (x * 2.0, None), lambda _, g: (g + g + g,))
    assert flops.count(function, X).total == 300
    assert flops.count(jax.grad(lambda x: function(x).sum()), X).total == 2 * 300
    relu = flops.count(jax.nn.relu, X)  # a custom_jvp
    assert relu.total == 300


def test_random_bits_and_what_nobody_asks_for_count_nothing():
    def function(x, key):
        jnp.exp(x @ x.T)
        return jax.random.bits(key, (40, 40)), x + x

    counted = flops.count(function, X, jax.random.key(0))
    assert (counted.total, counted.matmul, counted.transcendentals) == (300, 0, 0)


def test_modules_add_up_forward_and_backward():
    forward, params = transformer()
    optimizer = optax.sgd(0.1)

    def step(params, tokens):
        loss, grads = jax.value_and_grad(forward)(params, tokens)
        return loss, optax.apply_updates(params, optimizer.update(grads, optimizer.init(params))[0])

    counted = flops.count(step, params, TOKENS)
    assert sum(counted.modules.values()) == counted.total
    block = "Model/encoder/block"
    projection = 2 * BATCH * LENGTH * WIDTH**2
    assert counted.modules[f"{block}/attention/query"] == 3 * LAYERS * projection
    gated = 2 * BATCH * LENGTH * WIDTH * HIDDEN
    assert counted.modules[f"{block}/feed_forward/gate"] == 3 * LAYERS * gated
    size = sum(x.size for x in jax.tree.leaves(params))
    assert counted.modules[""] == 2 * size  # times the learning rate, and added
    remade = flops.count(jax.grad(transformer(remat=remat.save_nothing())[0]), params, TOKENS)
    assert remade.modules[f"{block}/attention/query"] == 4 * LAYERS * projection
    assert {path.split("/")[0] for path in counted.modules} == {"", "Model", "block"}


def test_the_table_has_the_largest_first_and_folds_what_is_deeper():
    counted = flops.Flops(
        total=10_000,
        matmul=0,
        recomputed=0,
        transcendentals=0,
        modules={"": 1_000, "m/a/x": 2_000, "m/a/y": 500, "m/b": 6_000, "m": 499, "tiny": 1},
        uncounted=(),
    )
    assert flops.table(counted, depth=2) == [
        "all               1.000e+04  100.0%",
        "  m               8.999e+03   90.0%",
        "    b             6.000e+03   60.0%",
        "    a             2.500e+03   25.0%",
        "  (in no module)  1.000e+03   10.0%",
    ]
    assert len(flops.table(counted, depth=3)) == 7
    assert flops.table(flops.count(lambda x: x, X)) == []


def test_jitted_functions_keep_their_static_arguments():
    repeat = jax.jit(lambda x, times: sum(x for _ in range(times)), static_argnames="times")
    assert flops.count(repeat, X, times=3).total == 3 * 300


def test_examples_in_docstrings():
    assert doctest.testmod(flops).failed == 0


def test_of_the_forms_for_each_platform_the_default_counts():
    """Neither a loop of unknown length nor a kernel's dynamic grid is asked for."""
    x, w = jnp.ones((6, 4)), jnp.ones((2, 4, 8))

    def product(x, w):
        loop = lambda x, w: jax.lax.while_loop(lambda y: y.sum() < 0, lambda y: y + 1, x @ w[0])
        ragged = lambda x, w: jax.lax.ragged_dot(x, w, jnp.array([2, 4], jnp.int32))
        return jax.lax.platform_dependent(x, w, cpu=loop, default=ragged)

    found = flops.count(product, x, w)
    assert found.matmul == 2 * 6 * 4 * 8
    assert not found.uncounted
