"""What must not change the values of an encoder and of a decoder: padding and what lies under it, and for one
dropout key how the computation is laid out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones import blocks, decoder_blocks, remat
from backbones.attention import SelfAttention
from backbones.cached_attention import CachedAttention
from backbones.decoder import TransformerDecoder
from backbones.embedding import TokenEmbedding
from backbones.encoder import TransformerEncoder
from backbones.norms import LayerNorm
from backbones.positions import rotary
from backbones.relative import RelativeBias
from moe.feed_forward import Dense

B, L, S, D, V, N, H = 2, 4, 5, 8, 11, 2, 2


class Both(nn.Module):
    """A post-norm encoder with T5 bias and a pre-norm rotary decoder over one table; the logits."""

    dropout: float = 0.0
    remat: object = None

    def setup(self):
        rest = {"num_layers": N, "dropout": self.dropout, "remat": self.remat}
        parts = {"feed_forward": Dense(width=12), "norm": LayerNorm(), "dropout": self.dropout}
        attention = SelfAttention(heads=H, dropout=self.dropout)
        own = CachedAttention(heads=H, rotate=rotary, dropout=self.dropout)
        across = CachedAttention(heads=H, dropout=self.dropout)
        embed = TokenEmbedding(V, D)
        self.encoder = TransformerEncoder(
            embed=embed,
            block=blocks.PostNorm(attention=attention, **parts),
            norm=None,
            bias=RelativeBias(heads=H),
            **rest,
        )
        self.decoder = TransformerDecoder(
            embed=embed,
            block=decoder_blocks.PreNorm(attention=own, cross_attention=across, **parts),
            bias=RelativeBias(heads=H, bidirectional=False),
            **rest,
        )

    def __call__(self, source, target, train=False):
        return self.decoder(target, self.encoder(source, train=train), train=train).logits


def draw_batch(seed, length, used):
    rng = np.random.default_rng(seed)
    mask = np.arange(length)[None] < np.array([[used], [length]])
    return {"tokens": rng.integers(0, V, (B, length)), "mask": mask}


@functools.cache
def random_params():
    params = jax.jit(Both().init)(jax.random.key(0), draw_batch(0, S, S), draw_batch(0, L, L))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.2 * jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)


def assert_close(ours, oracle):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
        assert np.max(np.abs(a - b)) <= 1e-5 * np.max(np.abs(b))


RUN = jax.jit(Both().apply)


def lengthen(batch, extra, rng):
    """The batch with positions added at the end, and any ids, out of range too, where the mask is False."""
    mask, tokens = (np.pad(batch[name], ((0, 0), (0, extra))) for name in ("mask", "tokens"))
    return {"mask": mask, "tokens": np.where(mask, tokens, rng.integers(-9, 99, mask.shape))}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(1, L), st.integers(1, S))
def test_padding_and_what_lies_under_it_change_nothing(seed, garbage_seed, used, source_used):
    rng = np.random.default_rng(garbage_seed)
    source, target = draw_batch(seed, S, source_used), draw_batch(seed + 1, L, used)
    plain = RUN(random_params(), source, target)
    longer = RUN(random_params(), lengthen(source, 2, rng), lengthen(target, 3, rng))
    assert_close(longer[:, :L], plain)
    assert not np.any(longer[:, L:])
    # another text in the same batch
    source["tokens"][1], target["tokens"][1] = rng.integers(0, V, S), rng.integers(0, V, L)
    assert_close(RUN(random_params(), source, target)[0], plain[0])


@functools.cache
def differentiated(module):
    def loss(params, key):
        batches = draw_batch(0, S, 3), draw_batch(1, L, 2)
        rngs = {"dropout": jax.random.key(key)}
        return jnp.sum(jnp.sin(module.apply(params, *batches, train=True, rngs=rngs)))

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.slow
def test_a_dropout_key_replays_values_and_gradients():
    """To the bit when called again; the same numbers when the backward pass computes layers again."""
    module = Both(dropout=0.3)
    first = differentiated(module)(random_params(), 0)
    jax.tree.map(np.testing.assert_array_equal, differentiated(module)(random_params(), 0), first)
    other = differentiated(module)(random_params(), 1)
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(first), strict=True):
        assert np.any(a != b)
    again = Both(dropout=0.3, remat=remat.save_nothing())
    assert_close(differentiated(again)(random_params(), 0), first)
