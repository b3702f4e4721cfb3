"""Costs of small models, worked out by hand."""

import doctest

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from backbones.cached_attention import CachedAttention
from backbones.decoder import TransformerDecoder
from backbones.decoder_blocks import PreNorm
from backbones.embedding import TokenEmbedding
from language_model import causal
from moe import cost
from moe.dropless import Dropless
from moe.feed_forward import Context
from moe.mixture import Mixture
from moe.routers import TopK
from training import flops
from training.build import build

V, D, Y, B, L, E, K, F = 32, 16, 3, 2, 8, 4, 2, 6
CAPACITY = dict(name="moe.capacity.Capacity", factor=1.25, tokens=L)  # C = ceil(1.25 2 8 / 4) = 5


def mixture(dispatcher=None, router=None, **fields):
    return dict(
        name="moe.mixture.Mixture",
        router=router or dict(name="moe.routers.TopK", num_experts=E, k=K),
        experts=dict(name="moe.experts.Dense", width=F, activation=dict(name="jax.numpy.abs")),
        dispatcher=dispatcher or dict(name="moe.buffered.Buffered", capacity=CAPACITY),
        **fields,
    )


def decoder(feed_forward, dtype="float32"):
    return build(
        dict(
            name="backbones.decoder.TransformerDecoder",
            num_layers=Y,
            embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=V, width=D),
            block=dict(
                name="backbones.decoder_blocks.PreNorm",
                attention=dict(name="backbones.cached_attention.CachedAttention", heads=2),
                feed_forward=feed_forward,
            ),
            dtype=dtype,
        )
    )


def found(feed_forward, calls=1, dtype="float32"):
    """The layers, the parameters and the function of a decoder that is called so many times."""
    model, batch = decoder(feed_forward, dtype), causal.read(causal.batch_shapes(B, L))
    rngs = dict(params=jax.random.key(0), router=jax.random.key(1))
    variables = jax.eval_shape(model.init, rngs, batch)
    params = {"model": variables["params"]}

    def function(params, batch):
        return sum(model.apply({"params": params["model"]}, batch).logits.sum() for _ in range(calls))

    return cost.sparse_layers(function, params, batch), params, lambda: flops.count(function, params, batch)


def test_a_sparse_model():
    (layer,), params, count = found(mixture())
    assert layer == cost.Layer(
        path="block/feed_forward",
        copies=Y,
        num_experts=E,
        tokens=B * L,
        edges=B * L * K,
        places=B * E * 5,
        width=D,
        itemsize=4,
        weights=2 * D * F,
        exchanged=False,
    )
    assert cost.parameters(params, [layer]) == {
        "attention": (Y * 4 * D * D, Y * 4 * D * D),
        "experts": (Y * E * 2 * D * F, Y * K * 2 * D * F),
        "routers": (Y * D * E, Y * D * E),
        "tables": (V * D, V * D),
        "other": (Y * 2 * D + D, Y * 2 * D + D),  # norms
    }
    operations = cost.operations(count(), [layer])
    # Two products with all places, and |x| of them.
    assert operations["experts"] == Y * B * E * 5 * (2 * 2 * D * F + F)
    assert operations["dispatch"] > 0
    # What the router does beside its product: a softmax of E and the choice.
    assert 0 < operations["routers"] - Y * B * L * 2 * D * E < Y * B * L * 30 * E


def test_a_dense_model_has_no_sparse_layers():
    layers, params, count = found(dict(name="moe.feed_forward.Dense", width=F))
    assert layers == []
    assert cost.parameters(params, layers)["dense feed-forward"] == (Y * 2 * D * F, Y * 2 * D * F)
    assert "experts" not in cost.operations(count(), layers)
    assert "dispatch" not in cost.operations(count(), layers)


def test_where_nothing_is_dropped_a_place_is_an_edge():
    (layer,), _, count = found(mixture(dict(name="moe.dropless.Dropless")), dtype="bfloat16")
    assert (layer.places, layer.edges, layer.itemsize) == (B * L * K, B * L * K, 2)
    assert cost.operations(count(), [layer])["experts"] >= Y * B * L * K * 2 * 2 * D * F


class Alone(nn.Module):
    """A layer that is in no stack; no decoder would have one in which experts choose."""

    layer: nn.Module

    def __call__(self, x_BLD):
        return self.layer(x_BLD, Context(valid=jnp.ones((B, L), bool)), ())[0].sum()


@pytest.mark.parametrize(
    ("name", "fields", "places"),
    [
        # Each expert takes 2 of 8 tokens, or has 2 averages of them: a token meets one expert of four.
        ("moe.expert_choice.ExpertChoice", dict(tokens=L, factor=1.0), 2),
        ("moe.soft.Soft", dict(slots=2), 2),
    ],
)
def test_where_experts_choose_their_share_is_what_they_choose(name, fields, places):
    part = dict(name=name, num_experts=E, **fields)
    experts = mixture()["experts"]
    model = Alone(build(mixture(router=part) if "choice" in name else part | dict(experts=experts)))
    x_BLD = jax.ShapeDtypeStruct((B, L, D), jnp.float32)
    params = {"model": jax.eval_shape(model.init, jax.random.key(0), x_BLD)["params"]}
    function = lambda params, x_BLD: model.apply({"params": params["model"]}, x_BLD)
    (layer,) = cost.sparse_layers(function, params, x_BLD)
    assert (layer.path, layer.copies, layer.weights) == ("layer", 1, 2 * D * F)
    assert (layer.places, layer.edges, layer.active) == (B * E * places, B * E * places, 1 / 4)
    total, active = cost.parameters(params, [layer])["experts"]
    assert active == total / 4


def test_shared_experts_are_always_active():
    shared = dict(name="moe.feed_forward.Dense", width=F)
    layers, params, _ = found(mixture(shared=shared))
    assert cost.parameters(params, layers)["dense feed-forward"] == (Y * 2 * D * F, Y * 2 * D * F)


def test_two_calls_of_one_model_are_two_even_of_one_shape():
    layers, params, _ = found(mixture(), calls=2)
    assert len(layers) == 2
    assert layers[0] == layers[1]
    assert cost.parameters(params, layers)["experts"] == (Y * E * 2 * D * F, Y * K * 2 * D * F)


class Named(nn.Module):
    """Experts whose weights have names of their own, and one that works with none."""

    width: int

    @nn.compact
    def __call__(self, rows, *, train=False):
        if not self.width:
            return rows
        wide = rows.matmul(self.param("up", nn.initializers.ones, (E, D, self.width)))
        down = self.param("down", nn.initializers.ones, (E, self.width, D))
        return wide.matmul(down).add(self.param("shift", nn.initializers.ones, (E, D)))


@pytest.mark.parametrize(("width", "copies", "weights"), [(F, Y, 2 * D * F + D), (0, 1, 0)])
def test_experts_may_name_their_weights_as_they_like(width, copies, weights):
    feed_forward = Mixture(TopK(E, K), Named(width), Dropless())
    model = TransformerDecoder(
        TokenEmbedding(V, D), PreNorm(CachedAttention(heads=2), feed_forward), num_layers=Y
    )
    batch = causal.read(causal.batch_shapes(B, L))
    params = {"model": jax.eval_shape(model.init, jax.random.key(0), batch)["params"]}
    function = lambda params, batch: model.apply({"params": params["model"]}, batch).logits.sum()
    (layer,) = cost.sparse_layers(function, params, batch)
    assert (layer.copies, layer.weights) == (copies, weights)


def layer_of(exchanged):
    return cost.Layer("x", 3, 8, 100, 200, 240, 10, 2, 500, exchanged)


@pytest.mark.parametrize("dispatcher", ["AllToAll", "RaggedAllToAll"])
def test_expert_parallel_layers_are_known(dispatcher):
    specs = {
        "AllToAll": dict(name="moe.expert_parallel.AllToAll", capacity=CAPACITY),
        "RaggedAllToAll": dict(name="moe.expert_parallel_dropless.RaggedAllToAll", buffer_factor=2.0),
    }
    (layer,), _, _ = found(mixture(specs[dispatcher]))
    assert layer.exchanged
    assert layer.places == {"AllToAll": B * E * 5, "RaggedAllToAll": B * L * K}[dispatcher]


def test_bytes_of_a_layer():
    # On one device: 240 places and 100 tokens of 20 bytes, 8 experts of 1,000 bytes.
    assert cost.moved(layer_of(False)) == cost.Moved(9600, 6800, 8000, 0, 0)
    # On 8: 30 places, 12.5 tokens; all experts, or 2 of them and 600 bytes to send, 3/4 to others.
    assert cost.moved(layer_of(False), devices=8, expert_parts=4) == cost.Moved(1200, 850, 8000, 0, 0)
    assert cost.moved(layer_of(True), devices=8, expert_parts=4) == cost.Moved(1200, 850, 2000, 600, 450)
    assert cost.moved(layer_of(True), devices=8) == cost.Moved(1200, 850, 8000, 0, 0)


def test_examples_in_docstrings():
    assert doctest.testmod(cost).failed == 0
