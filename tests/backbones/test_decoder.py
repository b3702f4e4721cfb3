"""The Transformer decoder: against loops in NumPy, its cache against the whole text; causality, padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from backbones import cache as caches
from backbones import decoder_blocks, masks, relative
from backbones.attention import SelfAttention
from backbones.blocks import PreNorm
from backbones.cached_attention import CachedAttention
from backbones.decoder import TransformerDecoder
from backbones.embedding import TokenEmbedding
from backbones.encoded import Encoded
from backbones.norms import LayerNorm, RMSNorm
from backbones.positions import LearnedPositions, rotary
from backbones.relative import RelativeBias
from moe.feed_forward import Dense

B, L, S, D, V, N, H = 2, 5, 4, 8, 11, 2, 2


def make(rotate=None, norm=None, post_norm=False, cross=True, dropout=0.0, **fields):
    norm = norm or RMSNorm()
    block = (decoder_blocks.PostNorm if post_norm else decoder_blocks.PreNorm)(
        attention=CachedAttention(heads=H, rotate=rotate, dropout=dropout),
        cross_attention=CachedAttention(heads=H, dropout=dropout) if cross else None,
        feed_forward=Dense(width=12, activation=nn.relu),
        norm=norm,
        dropout=dropout,
    )
    defaults = {
        "embed": TokenEmbedding(V, D),
        "block": block,
        "num_layers": N,
        "norm": None if post_norm else norm,
        "dropout": dropout,
    }
    return TransformerDecoder(**{**defaults, **fields})


DECODERS = {
    "rotary, pre-norm, cross, tied": make(rotary),
    "T5 bias, post-norm, cross, own output": make(
        norm=LayerNorm(),
        post_norm=True,
        bias=RelativeBias(heads=H, num_buckets=4, max_distance=4, bidirectional=False),
        output=TokenEmbedding(V + 2, D),
    ),
    "learned, alone, prefix": make(
        cross=False, position=LearnedPositions(max_length=12), visible=masks.prefix_lm
    ),
}
ROTARY, RELATIVE, ALONE = DECODERS.values()
each_decoder = pytest.mark.parametrize("module", DECODERS.values(), ids=DECODERS)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def draw_encoded(module, seed=0):
    if module.block.cross_attention is None:
        return None
    mask = jnp.arange(S)[None] < jnp.array([[S], [2]])
    return Encoded(last=jnp.where(mask[:, :, None], draw(seed, B, S, D), 0), mask=mask)


def draw_batch(seed=0):
    return {
        "tokens": jnp.asarray(np.random.default_rng(seed).integers(0, V, (B, L)), jnp.int32),
        "mask": jnp.ones((B, L), bool),
        "segments": jnp.asarray(np.arange(L)[None] >= np.array([[2], [3]]), jnp.int32),
    }


@functools.cache
def random_params(module):
    """Initial parameters, each moved so that no scale is 1 and no bias 0."""
    params = jax.jit(module.init)(jax.random.key(0), draw_batch(), draw_encoded(module))
    return jax.tree.map(lambda p: p + 0.2 * draw(p.size, *p.shape), params)


@functools.cache
def whole(module):
    return jax.jit(module.apply)


@functools.cache
def stepped(module):
    return jax.jit(functools.partial(module.apply, method="step"))


def begin(module, max_length, encoded):
    return module.apply(random_params(module), B, max_length, encoded, method="start")


def part(batch, low, high):
    return {name: array[:, low:high] for name, array in batch.items()}


def assert_close(ours, oracle, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


def decoder_oracle(module, params, batch, encoded):
    """One text, one head, one query at a time, in float64: logits [B, L, V]."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])

    def norm(x, p):
        if isinstance(module.block.norm, LayerNorm):
            x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p.get("bias", 0)

    def turn(x):
        half = x.shape[-1] // 2
        angle = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(half) / half)
        turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def attention(x, source, sees, p, own):
        y = np.zeros_like(x)
        for head, h in enumerate(np.split(np.arange(D), H)):
            q = x @ p["query"]["kernel"][:, h]
            k, v = (source @ p[name]["kernel"][:, h] for name in ("key", "value"))
            if own and module.block.attention.rotate is not None:
                q, k = turn(q), turn(k)
            for i in range(len(x)):
                seen = [j for j in range(len(source)) if sees(i, j)]
                scores = np.array([q[i] @ k[j] / np.sqrt(len(h)) + bias(i, j, head, own) for j in seen])
                weights = np.exp(scores - scores.max())
                y[i, h] = weights @ v[seen] / weights.sum()
        return y @ p["out"]["kernel"]

    def bias(i, j, head, own):
        if module.bias is None or not own:
            return 0.0
        row = relative.bucket(jnp.array(j - i), num_buckets=4, max_distance=4, bidirectional=False)
        return p["bias"]["table"][int(row), head]

    def layer(x, one, prefix, source, there):
        def wire(x, name, part):
            if isinstance(module.block, decoder_blocks.PreNorm):
                return x + part(norm(x, one[name]))
            return norm(x + part(x), one[name])

        def sees(i, j):
            return j <= i or prefix[j]

        x = wire(x, "attention_norm", lambda y: attention(y, y, sees, one["attention"], own=True))
        if source is not None:
            kernels = one["cross_attention"]
            across = lambda y: attention(y, source, lambda i, j: there[j], kernels, own=False)
            x = wire(x, "cross_attention_norm", across)
        first, second = (one["feed_forward"][name]["kernel"] for name in ("in", "out"))
        return wire(x, "feed_forward_norm", lambda y: np.maximum(y @ first, 0) @ second)

    logits, source, there = [], None, None
    for b in range(B):
        x = p["embed"]["table"][np.asarray(batch["tokens"][b])]
        if module.position is not None:
            x = x + p["position"]["table"][:L]
        prefix = (np.asarray(batch["segments"][b]) == 0) & (module.visible is masks.prefix_lm)
        if encoded is not None:
            source, there = np.asarray(encoded.last[b], np.float64), np.asarray(encoded.mask[b])
        for n in range(N):
            x = layer(x, jax.tree.map(lambda a, n=n: a[n], p["block"]), prefix, source, there)
        x = x if module.norm is None else norm(x, p["final_norm"])
        logits.append(x @ p["embed" if module.output is None else "output"]["table"].T)
    return np.stack(logits)


@each_decoder
def test_equals_numpy(module):
    params, batch, encoded = random_params(module), draw_batch(), draw_encoded(module)
    decoded = whole(module)(params, batch, encoded)
    assert decoded.logits.dtype == jnp.float32
    assert_close(decoded.logits, decoder_oracle(module, params, batch, encoded))
    assert decoded.aux == {}
    assert all(p.shape[0] == N for p in jax.tree.leaves(params["params"]["block"])), "stacked over layers"


@each_decoder
def test_the_cache_equals_the_whole_text_at_each_position(module):
    """A few tokens at first, then one a call, in a cache with room to spare."""
    params, batch, encoded = random_params(module), draw_batch(), draw_encoded(module)
    expected = whole(module)(params, batch, encoded)
    cache, logits = begin(module, L + 2, encoded), []
    shapes = jax.tree.map(jnp.shape, cache)
    for low, high in ((0, 3), (3, 4), (4, 5)):  # the prefix ends within the first three
        decoded, cache = stepped(module)(params, part(batch, low, high), cache)
        logits.append(decoded.logits)
        assert jax.tree.map(jnp.shape, cache) == shapes
    assert_close(jnp.concatenate(logits, axis=1), expected.logits)
    np.testing.assert_array_equal(cache.taken, jnp.full((1, B), L))


def test_one_token_a_call_in_a_scan():
    """The cache is the carry of a compiled loop."""
    params, batch, encoded = random_params(ROTARY), draw_batch(), draw_encoded(ROTARY)

    def run(params, tokens_BL):
        def one(cache, tokens_B):
            new = {"tokens": tokens_B[:, None], "mask": jnp.ones((B, 1), bool)}
            decoded, cache = ROTARY.apply(params, new, cache, method="step")
            return cache, decoded.logits[:, 0]

        cache = ROTARY.apply(params, B, L, encoded, method="start")
        return jax.lax.scan(one, cache, tokens_BL.T)[1].swapaxes(0, 1)

    ours = jax.jit(run)(params, batch["tokens"])
    assert_close(ours, whole(ROTARY)(params, batch, encoded).logits)


def test_rows_move_with_one_take():
    """Both rows become row 1, and go on as though both had been decoded so from the start."""
    params, batch, encoded = random_params(RELATIVE), draw_batch(), draw_encoded(RELATIVE)
    _, cache = stepped(RELATIVE)(params, part(batch, 0, 3), begin(RELATIVE, L + 2, encoded))
    rows = jnp.array([1, 1])
    decoded, _ = stepped(RELATIVE)(params, part(batch, 3, 4), caches.reorder(cache, rows))
    together = {**batch, "tokens": batch["tokens"].at[:, :3].set(batch["tokens"][rows, :3])}
    expected = whole(RELATIVE)(params, together, jax.tree.map(lambda a: a[rows], encoded))
    assert_close(decoded.logits[:, 0], expected.logits[:, 3])
    grown = caches.reorder(cache, jnp.array([1, 0, 1]))  # the batch is axis 1 of every leaf
    for new, old in zip(jax.tree.leaves(grown), jax.tree.leaves(cache), strict=True):
        np.testing.assert_array_equal(new, np.stack([old[:, 1], old[:, 0], old[:, 1]], axis=1))


@pytest.mark.parametrize("module", [ROTARY, RELATIVE], ids=["rotary", "T5 bias"])
def test_texts_of_different_length_go_on_from_their_own_end(module):
    """Row 1 begins with two tokens less, as padding; positions and masks know."""
    params, batch, encoded = random_params(module), draw_batch(), draw_encoded(module)
    first = {**part(batch, 0, 3), "mask": jnp.array([[1, 1, 1], [1, 0, 0]], bool)}
    _, cache = stepped(module)(params, first, begin(module, L + 2, encoded))
    joined = {**batch, "tokens": batch["tokens"].at[1, 1:3].set(batch["tokens"][1, 3:])}
    expected = whole(module)(params, joined, encoded).logits
    for of_0, of_1 in ((3, 1), (4, 2)):
        decoded, cache = stepped(module)(params, part(batch, of_0, of_0 + 1), cache)
        assert_close(decoded.logits[:, 0], jnp.stack([expected[0, of_0], expected[1, of_1]]))


def test_a_full_cache_says_so():
    params, batch, encoded = random_params(ROTARY), draw_batch(), draw_encoded(ROTARY)
    cache = begin(ROTARY, L + 2, encoded)
    for full in (False, False, True):  # 3, 6 and 9 tokens in 7 slots
        decoded, cache = stepped(ROTARY)(params, part(batch, 0, 3), cache)
        assert jnp.all(jnp.isnan(decoded.logits)) if full else jnp.all(jnp.isfinite(decoded.logits))
    with pytest.raises(ValueError, match=r"tokens have shape \(2, 5\); allowed.*\[2, up to 4\]"):
        stepped(ROTARY)(params, batch, begin(ROTARY, 4, encoded))


class Given(nn.Module):
    """Vectors handed in, so that a gradient can be taken with respect to them."""

    @nn.compact
    def __call__(self, tokens):
        return self.variable("given", "x", lambda: None).value


@pytest.mark.parametrize("module", [ROTARY, RELATIVE], ids=["pre-norm", "post-norm"])
def test_causal_by_gradient(module):
    """d out[t] / d x[s] is zero to the last bit for s > t, and not zero for s <= t; every output depends on
    the valid part of the source, and on nothing else of it."""
    params = {k: v for k, v in random_params(module)["params"].items() if k != "embed"}
    module = module.clone(embed=Given(), output=TokenEmbedding(V + 2, D))
    params["output"] = random_params(RELATIVE)["params"]["output"]
    batch, encoded = jax.tree.map(lambda a: a[1:], (draw_batch(), draw_encoded(ROTARY)))

    def outputs(x_LD, source_SD):
        variables = {"params": params, "given": {"embed": {"x": x_LD[None]}}}
        return module.apply(variables, batch, encoded.replace(last=source_SD[None])).logits[0]

    of_x, of_source = jax.jit(jax.jacrev(outputs, (0, 1)))(draw(3, L, D), draw(4, S, D))
    np.testing.assert_array_equal(jnp.any(of_x != 0, axis=(1, 3)), np.tril(np.ones((L, L), bool)))
    expected = np.broadcast_to(encoded.mask, (L, S))
    np.testing.assert_array_equal(jnp.any(of_source != 0, axis=(1, 3)), expected)


class Counting(nn.Module):
    """A feed-forward that adds nothing, counts tokens, and counts layers in its carry."""

    @nn.nowrap
    def initial_carry(self, x_BLD, context):
        return jnp.zeros((), jnp.int32)

    def __call__(self, x_BLD, context, carry):
        return jnp.zeros_like(x_BLD), carry + 1, {"tokens": jnp.sum(context.valid), "layer": carry}


def test_sums_of_the_layers_are_stacked_and_the_carry_goes_through():
    module = ROTARY.clone(block=ROTARY.block.clone(feed_forward=Counting()))
    batch, encoded = draw_batch(), draw_encoded(ROTARY)
    cache = begin(ROTARY, L, encoded)
    for decoded in (
        whole(module)(random_params(ROTARY), batch, encoded),
        stepped(module)(random_params(ROTARY), batch, cache)[0],
    ):
        np.testing.assert_array_equal(decoded.aux["tokens"], [B * L] * N)
        np.testing.assert_array_equal(decoded.aux["layer"], np.arange(N))


def test_bfloat16_keeps_float32_logits_and_a_bfloat16_cache():
    module = RELATIVE.clone(dtype="bfloat16")
    params, batch, encoded = random_params(RELATIVE), draw_batch(), draw_encoded(RELATIVE)
    cache = module.apply(params, B, L, encoded, method="start")
    assert {a.dtype for a in jax.tree.leaves((cache.own, cache.source))} == {jnp.dtype("bfloat16")}
    decoded, cache = stepped(module)(params, batch, cache)
    assert cache.own.keys.dtype == decoded.last.dtype == jnp.bfloat16
    assert decoded.logits.dtype == jnp.float32
    assert_close(decoded.logits, whole(RELATIVE)(params, batch, encoded).logits, 0.05)


def test_what_cannot_be_is_named():
    batch, encoded = draw_batch(), draw_encoded(ROTARY)

    def refused(module, message, *args):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(module.init, jax.random.key(0), batch, *args)

    refused(ROTARY, "encoded is missing")
    refused(ALONE, "encoded is given", encoded)
    refused(ROTARY.clone(num_layers=0), "num_layers is 0", encoded)
    plain = ROTARY.block.clone(attention=SelfAttention(heads=H))
    refused(ROTARY.clone(block=plain), "attention is SelfAttention; allowed in a decoder", encoded)
    encoder_block = PreNorm(attention=SelfAttention(heads=H), feed_forward=Dense(width=12))
    refused(
        ROTARY.clone(block=encoder_block), "block is PreNorm; allowed: one of backbones.decoder_b", encoded
    )
    turned = ROTARY.block.clone(cross_attention=CachedAttention(heads=H, rotate=rotary))
    refused(ROTARY.clone(block=turned), "allowed in cross-attention: None", encoded)
    refused(
        ROTARY.clone(embed=TokenEmbedding(V, 9)),
        "heads is 2; allowed: a divisor of the model width 9",
        encoded,
    )
    wide = Encoded(last=jnp.zeros((B, S, 2 * D)), mask=encoded.mask)
    refused(ROTARY, "keys are 8 wide a head; allowed: 4", wide)
    params = random_params(ROTARY)
    for arguments, message in (
        ((3, L, encoded), "batch_size is 3; allowed: that of encoded, 2"),
        ((B, 0, encoded), "max_length is 0"),
        ((B, L), "encoded is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            ROTARY.apply(params, *arguments, method="start")
