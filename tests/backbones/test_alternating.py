"""Alternating layers equal plain blocks applied by hand, each with its own mask and rotation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones import masks
from backbones.alternating import AlternatingPreNorm
from backbones.attention import SelfAttention
from backbones.blocks import PreNorm
from backbones.embedding import TokenEmbedding
from backbones.encoded import read_batch
from backbones.encoder import TransformerEncoder
from backbones.norms import LayerNorm
from backbones.positions import rotary
from moe.feed_forward import Dense

B, L, D, V, LAYERS = 2, 7, 8, 11, 5
TEXT = {
    "tokens": np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32),
    "mask": np.arange(L)[None] < np.array([[7], [4]]),
}
SIZES = {"every": 3, "window": 1, "base": 50.0, "local_base": 5.0}


def alternating(rotate=None, **sizes):
    return AlternatingPreNorm(SelfAttention(2, rotate=rotate), Dense(12), LayerNorm(), **SIZES | sizes)


@pytest.mark.slow
def test_layers_equal_blocks_by_hand():
    """Five layers in periods of three: 0 and 3 are wide. Layer 0 has no norm before its attention."""
    module = TransformerEncoder(TokenEmbedding(V, D), alternating(), LAYERS, return_layers=True)
    params = jax.jit(module.init)(jax.random.key(0), TEXT)["params"]
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    layers = jax.jit(module.apply)({"params": params}, TEXT).layers

    @jax.jit
    def by_hand(params):
        context, found = read_batch(TEXT, train=False), []
        x = params["embed"]["table"][TEXT["tokens"]]
        for number in range(LAYERS):
            wide = number in (0, 3)
            rotate = functools.partial(rotary, base=50.0 if wide else 5.0)
            visible = masks.padding(context) if wide else masks.window(context, before=1, after=1)
            of_layer = jax.tree.map(lambda p, number=number: p[number], params["block"])
            attention, dense = SelfAttention(2, rotate=rotate), Dense(12)
            if number == 0:
                x = x + attention.apply({"params": of_layer["attention"]}, x, context, visible=visible)
                y = LayerNorm().apply({"params": of_layer["feed_forward_norm"]}, x)
                x = x + dense.apply({"params": of_layer["feed_forward"]}, y, context, ())[0]
            else:
                block = PreNorm(attention, dense, LayerNorm())
                x, _, _ = block.apply({"params": of_layer}, x, context, (), visible=visible)
            found.append(x)
        return jnp.stack(found)

    expected = np.asarray(by_hand(params))
    for ours, theirs in zip(layers, expected, strict=True):
        ours, theirs = np.asarray(ours)[TEXT["mask"]], theirs[TEXT["mask"]]
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (alternating(every=0), "every is 0; allowed: an integer of at least 1"),
        (alternating(window=-1), "window is -1; allowed: an integer of at least 0"),
        (alternating(rotate=rotary), "attention has rotate = .*; allowed: None, base and local_base"),
    ],
)
def test_what_alternating_layers_refuse(block, said):
    module = TransformerEncoder(TokenEmbedding(V, D), block, LAYERS)
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(module.init, jax.random.key(0), TEXT)
