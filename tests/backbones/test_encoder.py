"""The Transformer encoder: against NumPy, and what must not change its values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from backbones import relative, remat
from backbones.attention import SelfAttention
from backbones.blocks import PostNorm, PreNorm
from backbones.embedding import TokenEmbedding
from backbones.encoded import read_batch
from backbones.encoder import TransformerEncoder
from backbones.norms import LayerNorm, RMSNorm
from backbones.positions import LearnedPositions, rotary
from backbones.relative import RelativeBias
from moe.feed_forward import Dense, Gated

B, L, D, V, N = 3, 6, 8, 13, 2


def make(rotate=rotary, feed_forward=None, norm=None, dropout=0.0, kind=PreNorm, **fields):
    norm = norm or RMSNorm()
    block = kind(
        attention=SelfAttention(heads=2, rotate=rotate, dropout=dropout),
        feed_forward=feed_forward or Dense(width=12),
        norm=norm,
        dropout=dropout,
    )
    return TransformerEncoder(
        **{
            "embed": TokenEmbedding(V, D),
            "block": block,
            "num_layers": N,
            "norm": norm if kind is PreNorm else None,
            "dropout": dropout,
            **fields,
        }
    )


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def draw_batch(seed=0, length=L):
    rng = np.random.default_rng(seed)
    return {
        "tokens": jnp.asarray(rng.integers(0, V, (B, length)), jnp.int32),
        "mask": jnp.asarray(np.arange(length)[None] < np.array([[length], [2], [3]]), jnp.int32),
    }


@functools.cache
def random_params(module):
    """Initial parameters, each moved so that no scale is 1 and no bias 0."""
    params = jax.jit(module.init)(jax.random.key(0), draw_batch())
    return jax.tree.map(lambda p: p + 0.2 * draw(p.size, *p.shape), params)


@functools.cache
def compiled(module, train):
    return jax.jit(functools.partial(module.apply, train=train))


def apply(module, params, batch, train=False, **kwargs):
    return compiled(module, train)(params, batch, **kwargs)


def assert_close(ours, oracle, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


def encoder_oracle(module, params, batch):
    """One text, one head, one query at a time, in float64; returns last [B, L, D] and layers [N, B, L, D]."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
    p_bias = p["bias"]["table"] if module.bias is not None else None

    def norm(x, p):
        if isinstance(module.block.norm, LayerNorm):
            x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p.get("bias", 0)

    def turn(x):
        half = x.shape[-1] // 2
        if module.block.attention.rotate is None:
            return x
        angle = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(half) / half)
        turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def attention(x, valid, p):
        y = np.zeros_like(x)
        for h in np.split(np.arange(D), module.block.attention.heads):
            q, k, v = (x @ p[name]["kernel"][:, h] for name in ("query", "key", "value"))
            q, k = turn(q), turn(k)
            for i in range(len(x)):
                scores = k @ q[i] / np.sqrt(len(h))
                if module.bias is not None:
                    head = h[0] // len(h)
                    scores += [p_bias[int(relative.bucket(jnp.array(j - i))), head] for j in range(len(x))]
                scores = np.where(valid, scores, -np.inf)
                weights = np.exp(scores - scores.max())
                y[i, h] = weights @ v / weights.sum()
        return y @ p["out"]["kernel"]

    def feed_forward(x, p):
        if isinstance(module.block.feed_forward, Gated):
            gate = x @ p["gate"]["kernel"]
            return (gate / (1 + np.exp(-gate)) * (x @ p["in"]["kernel"])) @ p["out"]["kernel"]
        h = x @ p["in"]["kernel"]
        return (0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))) @ p["out"]["kernel"]

    last, layers = np.zeros((B, L, D)), np.zeros((N, B, L, D))
    for b in range(B):
        valid = np.asarray(batch["mask"][b], bool)
        x = p["embed"]["table"][np.where(valid, batch["tokens"][b], 0)]
        if module.position is not None:
            x = x + p["position"]["table"][: len(x)]
        for n in range(N):
            one = jax.tree.map(lambda a, n=n: a[n], p["block"])
            if isinstance(module.block, PreNorm):
                x = x + attention(norm(x, one["attention_norm"]), valid, one["attention"])
                x = x + feed_forward(norm(x, one["feed_forward_norm"]), one["feed_forward"])
            else:
                x = norm(x + attention(x, valid, one["attention"]), one["attention_norm"])
                x = norm(x + feed_forward(x, one["feed_forward"]), one["feed_forward_norm"])
            layers[n, b] = x
        last[b] = (x if module.norm is None else norm(x, p["final_norm"])) * valid[:, None]
    return last, layers


ROTARY = make(return_layers=True)
LEARNED = make(
    None, Gated(width=12), LayerNorm(), position=LearnedPositions(max_length=L + 2), return_layers=True
)
RELATIVE = make(None, norm=LayerNorm(), kind=PostNorm, bias=RelativeBias(heads=2), return_layers=True)


@pytest.mark.parametrize(
    "module",
    [ROTARY, LEARNED, RELATIVE],
    ids=["rotary, rms, gelu", "learned, layer norm, swiglu", "T5 bias, post-norm"],
)
def test_equals_numpy(module):
    params, batch = random_params(module), draw_batch()
    encoded = apply(module, params, batch)
    assert_close((encoded.last, encoded.layers), encoder_oracle(module, params, batch))
    np.testing.assert_array_equal(encoded.mask, batch["mask"].astype(bool))
    assert encoded.aux == {}
    assert all(p.shape[0] == N for p in jax.tree.leaves(params["params"]["block"])), "stacked over layers"


@functools.cache
def differentiated(module, train):
    def loss(params, batch, rngs):
        return jnp.sum(jnp.sin(module.apply(params, batch, train=train, rngs=rngs).last))

    return jax.jit(jax.value_and_grad(loss))


def value_and_gradient(module, params, batch, key=None):
    rngs = None if key is None else {"dropout": jax.random.key(key)}
    return differentiated(module, key is not None)(params, batch, rngs)


def test_scanned_equals_a_python_loop_in_value_and_gradient():
    module, batch = make(), draw_batch()
    params = random_params(module)

    def loss(params):
        p = params["params"]
        context = read_batch(batch, train=False)
        x_BLD = p["embed"]["table"][context.tokens]
        for n in range(N):
            one = {"params": jax.tree.map(lambda a, n=n: a[n], p["block"])}
            x_BLD, _, _ = module.block.apply(one, x_BLD, context, (), visible=context.valid[:, None, None, :])
        last_BLD = module.norm.apply({"params": p["final_norm"]}, x_BLD)
        return jnp.sum(jnp.sin(last_BLD) * context.valid[:, :, None])

    assert_close(value_and_gradient(module, params, batch), jax.jit(jax.value_and_grad(loss))(params))


REPLAYED = make(dropout=0.3, bias=RelativeBias(heads=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{"unroll": N}, {"remat": remat.save_nothing()}, {"remat": remat.save_projections()}],
    ids=["unrolled", "save_nothing", "save_projections"],
)
def test_how_it_is_computed_changes_nothing(fields):
    """With dropout on: a key that is replayed drops the same, also where the backward pass computes again."""
    params, batch = random_params(REPLAYED), draw_batch()
    ours = value_and_gradient(REPLAYED.clone(**fields), params, batch, key=0)
    assert_close(ours, value_and_gradient(REPLAYED, params, batch, key=0))


def test_gradient_equals_finite_differences():
    module, batch = make(norm=LayerNorm(), feed_forward=Gated(width=12)), draw_batch()
    params = random_params(module)
    value, gradient = value_and_gradient(module, params, batch)
    step = jax.tree.map(lambda p: draw(p.size + 1, *p.shape), params)
    loss = jax.jit(
        lambda e: jnp.sum(
            jnp.sin(module.apply(jax.tree.map(lambda p, s: p + e * s, params, step), batch).last)
        )
    )
    along = sum(jnp.vdot(g, s) for g, s in zip(jax.tree.leaves(gradient), jax.tree.leaves(step), strict=True))
    assert float(loss(0.0)) == pytest.approx(float(value), rel=1e-5)
    assert float(loss(1e-3) - loss(-1e-3)) / 2e-3 == pytest.approx(float(along), rel=1e-2)


@pytest.mark.parametrize("module", [ROTARY, LEARNED, RELATIVE], ids=["rotary", "learned", "T5 bias"])
def test_padding_changes_nothing(module):
    params, batch = random_params(module), draw_batch()
    plain = apply(module, params, batch)
    garbage = {**batch, "tokens": jnp.where(batch["mask"] == 1, batch["tokens"], V + 100)}
    np.testing.assert_array_equal(apply(module, params, garbage).last, plain.last)
    longer = {name: jnp.pad(a, ((0, 0), (0, 2))) for name, a in garbage.items()}
    encoded = apply(module, params, longer)
    assert_close(encoded.last[:, :L], plain.last, 1e-6)
    assert not jnp.any(encoded.last[:, L:])
    assert not jnp.any(encoded.mask[:, L:])


def test_padding_has_no_gradient():
    """With respect to the vectors put in: zero under the mask, elsewhere not; finite where all is padding."""
    module, batch = make(embed=Given()), draw_batch()
    batch["mask"] = batch["mask"].at[1].set(0)
    x_BLD = draw(5, B, L, D)
    params = {"params": {k: v for k, v in random_params(make())["params"].items() if k != "embed"}}

    def loss(x_BLD):
        return jnp.sum(jnp.sin(module.apply({**params, "given": {"embed": {"x": x_BLD}}}, batch).last))

    gradient = jax.jit(jax.grad(loss))(x_BLD)
    assert jnp.all(jnp.isfinite(gradient))
    np.testing.assert_array_equal(jnp.any(gradient != 0, axis=-1), batch["mask"] == 1)


class Given(nn.Module):
    """Vectors handed in, so that a gradient can be taken with respect to them."""

    @nn.compact
    def __call__(self, tokens):
        return self.variable("given", "x", lambda: None).value


def test_bfloat16_is_close_with_float32_parameters():
    params, batch = random_params(make()), draw_batch()
    module = make(dtype="bfloat16", return_layers=True)
    encoded = apply(module, params, batch)
    assert encoded.last.dtype == encoded.layers.dtype == jnp.bfloat16
    assert_close(encoded.last, apply(make(), params, batch).last, 0.05)
    init = jax.eval_shape(module.init, jax.random.key(0), batch)
    gradient = jax.eval_shape(jax.grad(lambda p: module.apply(p, batch).last.astype("float32").sum()), init)
    assert {a.dtype for a in jax.tree.leaves((init, gradient))} == {jnp.dtype("float32")}


def test_dropout_only_in_training_replayable_and_different_in_each_layer():
    params, batch = random_params(make()), draw_batch()
    batch["mask"] = jnp.ones_like(batch["mask"])
    module = make(dropout=0.3)
    np.testing.assert_array_equal(apply(module, params, batch).last, apply(make(), params, batch).last)

    def dropped(module, seed):
        return apply(module, params, batch, train=True, rngs={"dropout": jax.random.key(seed)}).last

    np.testing.assert_array_equal(dropped(module, 0), dropped(module, 0))
    assert np.max(np.abs(dropped(module, 0) - dropped(module, 1))) > 0.01
    # What each layer adds, with the same weights in all of them: zero at other places.
    same = jax.tree.map(lambda a: jnp.repeat(a[:1], 3, axis=0), params["params"]["block"])
    block = make().block.clone(dropout=0.5, feed_forward=Zero())
    module = make(block=block, num_layers=3, return_layers=True)
    same = {k: v for k, v in same.items() if k != "feed_forward"}
    params = {"params": {**params["params"], "block": same}}
    layers = apply(module, params, batch, train=True, rngs={"dropout": jax.random.key(0)}).layers
    zero_NBLD = np.diff(layers, axis=0) == 0
    assert 0.3 < zero_NBLD.mean() < 0.7
    assert np.any(zero_NBLD[0] != zero_NBLD[1])


class Zero(nn.Module):
    """A feed-forward that adds nothing, counts tokens, and counts layers in its carry."""

    @nn.nowrap
    def initial_carry(self, x_BLD, context):
        return jnp.zeros((), jnp.int32)

    def __call__(self, x_BLD, context, carry):
        return jnp.zeros_like(x_BLD), carry + 1, {"tokens": jnp.sum(context.valid), "layer": carry}


def test_sums_of_the_layers_are_stacked_and_the_carry_goes_through():
    module, batch = make(feed_forward=Zero()), draw_batch()
    encoded = apply(module, jax.jit(module.init)(jax.random.key(0), batch), batch)
    np.testing.assert_array_equal(encoded.aux["tokens"], [L + 2 + 3] * N)
    np.testing.assert_array_equal(encoded.aux["layer"], np.arange(N))


def test_a_prefix_is_like_tokens_before_the_text():
    module, batch = ROTARY, draw_batch()
    params = random_params(module)
    first = jnp.array([[3, 7]] * B)
    joined = {
        "tokens": jnp.concatenate([first, batch["tokens"]], 1),
        "mask": jnp.pad(batch["mask"], ((0, 0), (2, 0)), constant_values=1),
    }
    prefix = params["params"]["embed"]["table"][first]
    ours, expected = apply(module, params, batch, prefix=prefix), apply(module, params, joined)
    assert_close((ours.last, ours.layers), (expected.last, expected.layers), 1e-6)
    np.testing.assert_array_equal(ours.mask, expected.mask)


class Pair(nn.Module):
    """Two encoders over one table."""

    query: nn.Module
    document: nn.Module

    def __call__(self, batch):
        return self.query(batch).last, self.document(batch).last


def test_two_towers_share_an_embedding():
    embed, batch = TokenEmbedding(V, D), draw_batch()
    pair = Pair(query=make(embed=embed), document=make(embed=embed, num_layers=1))
    params = jax.jit(pair.init)(jax.random.key(0), batch)
    paths = ["/".join(p.key for p in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert [p for p in paths if "embed" in p] == ["params/query/embed/table"]
    moved = jax.tree_util.tree_map_with_path(lambda path, p: p + ("embed" in str(path)), params)
    run = jax.jit(pair.apply)
    for before, after in zip(run(params, batch), run(moved, batch), strict=True):
        assert np.max(np.abs(before - after)) > 0.01


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0"),
        ({"position": LearnedPositions(max_length=L - 1)}, f"length {L}.*max_length = {L - 1}"),
        ({"embed": TokenEmbedding(V, 9)}, "heads is 2.*width 9"),
        ({"embed": TokenEmbedding(V, 6)}, "is 3; allowed with rotary positions: even"),
        ({"unroll": 0}, "unroll"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make(**fields).init, jax.random.key(0), draw_batch())


def test_arrays_of_another_shape_are_named():
    batch = {**draw_batch(), "positions": jnp.arange(L)[None]}
    with pytest.raises(ValueError, match=r"batch\['positions'\] has shape \(1, 6\)"):
        jax.eval_shape(make().init, jax.random.key(0), batch)
