"""What layers say that a token depends on, against what it does depend on: both ways, layer by layer."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from backbones import blocks, decoder_blocks
from backbones.attention import SelfAttention
from backbones.cached_attention import CachedAttention
from backbones.decoder import TransformerDecoder
from backbones.embedding import TokenEmbedding
from backbones.encoder import TransformerEncoder
from dual_encoder.trained import Trained
from moe import capacity, feed_forward, leakage, tables
from moe.buffered import Buffered
from moe.capacity import Capacity
from moe.dropless import Dropless
from moe.expert_choice import ExpertChoice
from moe.expert_parallel import AllToAll
from moe.expert_parallel_dropless import RaggedAllToAll
from moe.experts import Dense
from moe.feed_forward import Context
from moe.group_limit import GroupLimit
from moe.gshard import GShard
from moe.leakage import Dependence, DependenceError
from moe.loss_free import LossFree
from moe.mixture import Mixture
from moe.noise import Learned
from moe.one_hot import OneHot
from moe.routers import TopK
from moe.shared import Weighted
from moe.soft import Soft
from moe.sorted import Sorted
from training.mesh import data_mesh

B, L, D, E, F, V = 3, 6, 8, 4, 6, 12
NONE = Dependence()
EARLIER = Dependence(earlier=True)
OWN = Dependence(later=True, earlier=True)
EARLIER_TEXTS = Dependence(batch=True, earlier=True)
ALL = Dependence(batch=True, later=True, earlier=True)

TOP = TopK(E, 2)
CHOICE = ExpertChoice(E, L, factor=1.0)
CHOOSE = OneHot(Capacity(1.0, 1))


def tight(priority=capacity.by_position, **fields):
    return Capacity(0.7, L, priority=priority, **fields)


def layer(router=TOP, dispatcher=None, rows=1, **fields):
    return Mixture(router, Dense(F), dispatcher or OneHot(), rows, **fields)


LAYERS = {
    "all served": (layer(), NONE),
    "dropless": (layer(dispatcher=Dropless()), NONE),
    "dropless, shared groups": (layer(dispatcher=Dropless(), rows=None), NONE),
    "GShard": (layer(GShard(E)), NONE),
    "loss-free": (layer(LossFree(E, 2)), NONE),
    "served at evaluation": (layer(dispatcher=Sorted(tight(evaluation_factor=math.inf)), rows=None), NONE),
    "capacity": (layer(dispatcher=OneHot(tight())), EARLIER),
    "by token": (layer(tables.ByToken(E, functools.partial(tables.random, vocabulary=V))), NONE),
    "buffered capacity": (layer(dispatcher=Buffered(tight())), EARLIER),
    "sorted capacity": (layer(dispatcher=Sorted(tight())), EARLIER),
    "shared capacity": (layer(dispatcher=Sorted(tight()), rows=None), EARLIER_TEXTS),
    "first choices first": (layer(dispatcher=Sorted(tight(capacity.by_choice))), OWN),
    "best first": (layer(dispatcher=Sorted(tight(capacity.by_score))), OWN),
    "shared, best first": (layer(dispatcher=Sorted(tight(capacity.by_score)), rows=None), ALL),
    "expert choice": (layer(CHOICE, CHOOSE), OWN),
    "shared expert choice": (layer(CHOICE, CHOOSE, rows=None), ALL),
    "soft": (Soft(E, Dense(F)), OWN),
    "shared soft": (Soft(E, Dense(F), group_rows=None), ALL),
}
RARER = {
    "group-limited": (layer(TopK(E, 2, limit=GroupLimit(2, 1))), NONE),
    "noisy in training": (layer(TopK(E, 2, noise=Learned())), NONE),
    "by domain": (layer(tables.ByDomain(E, experts=[[0, 3], [1, 2]])), NONE),
    "all-to-all": (layer(dispatcher=AllToAll(tight())), EARLIER),
    "all-to-all without capacity": (layer(dispatcher=RaggedAllToAll(math.inf), rows=None), NONE),
}
LAYERS |= RARER
SLOW = {*RARER, "dropless", "GShard", "loss-free", "capacity", "served at evaluation", "first choices first"}


def names(of):
    """The rarer ones in `make test-all`."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in of]


SAFE = [name for name, (_, stated) in LAYERS.items() if not stated.batch]


@functools.cache
def applied(name):
    """A function `x [B, L, D], valid [B, L] -> y` of one of the layers."""
    module, rng = LAYERS[name][0], np.random.default_rng(9)

    def context(x, valid):
        # A token's id is a matter of its x, so that tables too see other tokens where x changes.
        ids = (1000 * jnp.abs(x[:, :, 0])).astype(jnp.int32) % V
        return Context(valid=valid, tokens=ids, domains=jnp.zeros(len(x), jnp.int32))

    given = (jnp.ones((B, L, D)), context(jnp.ones((B, L, D)), jnp.ones((B, L), bool)), ())
    shapes = jax.eval_shape(module.init, jax.random.key(0), *given)
    variables = jax.tree.map(lambda leaf: draw(rng, *leaf.shape), shapes)
    compiled = jax.jit(lambda x, valid: module.apply(variables, x, context(x, valid), ())[0])
    return lambda x, valid: np.asarray(compiled(x, valid))


def draw(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", names(LAYERS))
def test_what_is_stated_is_what_is_found(name):
    """A layer that is said to be safe never moves, and one that is not has a counterexample."""
    module, stated = LAYERS[name]
    assert module.dependence(train=False) == stated
    apply, rng, row, at = applied(name), np.random.default_rng(0), 1, 3
    moved = {"batch": 0.0, "later": 0.0, "earlier": 0.0}
    valid = np.ones((B, L), bool)
    for _ in range(12):
        x, other = draw(rng, B, L, D), draw(rng, B, L, D)
        y = apply(x, valid)
        own, here = np.arange(B)[:, None, None] == row, np.arange(L)[None, :, None]
        for what, where, read in (
            ("batch", ~own & (here >= 0), slice(None)),
            ("later", own & (here > at), slice(at + 1)),
            ("earlier", own & (here < at), slice(at, None)),
        ):
            z = apply(np.where(where, other, x), valid)
            moved[what] = max(moved[what], np.abs(z - y)[row, read].max() / np.abs(y).max())
    found = {what: amount > 1e-3 for what, amount in moved.items()}
    assert found == {what: getattr(stated, what) for what in found}
    assert all(amount <= 1e-6 for what, amount in moved.items() if not found[what]), moved


@pytest.mark.parametrize("name", names(SAFE))
def test_a_text_gets_the_same_whatever_its_companions_and_their_order(name):
    """To the bit, but where the oracle adds up a group of several texts by a product with a mask."""
    apply, rng = applied(name), np.random.default_rng(1)
    module = LAYERS[name][0]
    masked = isinstance(getattr(module, "dispatcher", None), OneHot)
    exact = module.group_rows == 1 or not masked
    text, padding = draw(rng, L, D), np.arange(L) < 5
    first = None
    for _ in range(12):
        row = int(rng.integers(B))
        x, valid = draw(rng, B, L, D), rng.random((B, L)) < 0.8
        x[row], valid[row] = text, padding
        y = apply(x, valid)[row, :5]
        first = y if first is None else first
        if exact:
            np.testing.assert_array_equal(y, first)
        else:
            assert np.abs(y - first).max() <= 1e-6 * np.abs(first).max()


@pytest.mark.slow
@pytest.mark.parametrize("dispatcher", [Dropless(), Sorted(Capacity(1.0, 64))], ids=["Dropless", "Sorted"])
def test_a_text_gets_the_same_to_the_bit_at_the_widths_of_a_model(dispatcher):
    """On average an expert has 25 rows at first and 250 at last, so that its blocks differ in size."""
    module, rng = Mixture(TopK(E, 2), Dense(512), dispatcher, 1), np.random.default_rng(3)
    shape = (8, 64, 128)
    given = (jnp.ones(shape), Context(valid=jnp.ones(shape[:2], bool)), ())
    shapes = jax.eval_shape(module.init, jax.random.key(0), *given)
    variables = jax.tree.map(lambda leaf: draw(rng, *leaf.shape) / leaf.shape[-2] ** 0.5, shapes)
    apply = jax.jit(lambda x, valid: module.apply(variables, x, Context(valid=valid), ())[0])
    text, padding, first = draw(rng, *shape[1:]), np.arange(64) < 50, None
    for share in (0.0, 0.05, 0.2, 0.5, 0.8, 1.0):
        row = int(rng.integers(8))
        x, valid = draw(rng, *shape), rng.random(shape[:2]) < share
        x[row], valid[row] = text, padding
        y = np.asarray(apply(x, valid))[row, :50]
        first = y if first is None else first
        np.testing.assert_array_equal(y, first)


@pytest.mark.parametrize("name", ["dropless, shared groups", "sorted capacity", "expert choice", "soft"])
def test_a_text_gets_the_same_in_batches_of_other_shapes(name):
    apply, rng = applied(name), np.random.default_rng(2)
    texts = draw(rng, B, L, D)
    expected = apply(texts, np.ones((B, L), bool))
    longer, valid = draw(rng, 5, L + 5, D), np.ones((5, L + 5), bool)
    longer[1:4, :L], valid[1:4, L:] = texts, False
    y = apply(longer, valid)[1:4, :L]
    assert np.abs(y - expected).max() <= 1e-6 * np.abs(expected).max()


def test_a_part_that_says_nothing_is_taken_to_depend_on_everything():
    class Silent(nn.Module):
        num_experts: int = E

    assert layer(Silent()).dependence(train=False) == ALL
    assert layer(dispatcher=object()).dependence(train=False) == ALL
    unknown = lambda routing: (-routing.token,)
    assert layer(dispatcher=OneHot(tight(unknown))).dependence(train=False) == OWN


def test_training_and_evaluation_may_differ():
    module = layer(dispatcher=Sorted(tight(capacity.by_score, evaluation_factor=math.inf)), rows=None)
    assert module.dependence(train=True) == ALL
    assert module.dependence(train=False) == NONE


def test_a_shared_layer_counts_too():
    assert layer(shared=Soft(E, Dense(F), group_rows=2)).dependence(train=False) == ALL
    assert layer(shared=Weighted(Soft(E, Dense(F)))).dependence(train=False) == OWN
    assert layer(shared=feed_forward.Dense(F)).dependence(train=False) == NONE


def encoder(feed_forward):
    block = blocks.PreNorm(attention=SelfAttention(heads=2), feed_forward=feed_forward)
    return TransformerEncoder(embed=TokenEmbedding(V, D), block=block, num_layers=2)


def test_layers_are_found_in_the_fields_of_a_model():
    sparse, soft = layer(CHOICE, CHOOSE), Soft(E, Dense(F))
    assert leakage.of(encoder(feed_forward.Dense(F))) == {}
    assert leakage.of(encoder(sparse)) == {"block.feed_forward": (sparse, OWN)}
    several = nn.Sequential([encoder(sparse), encoder(soft)])
    assert {path: found for path, (_, found) in leakage.of(several).items()} == {
        "layers.0.block.feed_forward": OWN,
        "layers.1.block.feed_forward": OWN,
    }


def decoder(feed_forward):
    block = decoder_blocks.PreNorm(attention=CachedAttention(heads=2), feed_forward=feed_forward)
    return TransformerDecoder(embed=TokenEmbedding(V, D), block=block, num_layers=2)


BATCH = {"tokens": jnp.zeros((2, 4), jnp.int32), "mask": jnp.ones((2, 4), bool)}


@pytest.mark.parametrize("name", ["best first", "first choices first", "expert choice", "soft"])
def test_decoders_refuse_what_looks_ahead(name):
    model = decoder(LAYERS[name][0])
    with pytest.raises(
        DependenceError, match=r"block\.feed_forward: what a token gets depends on later tokens"
    ):
        model.init(jax.random.key(0), BATCH)
    with pytest.raises(DependenceError, match="depends on later tokens"):
        model.apply({"params": {}}, 2, 4, method="start", allow_batch_dependence=True)


def test_a_decoder_that_looks_ahead_in_training_alone_does_not_train():
    ahead = tight(capacity.by_score, evaluation_factor=math.inf)
    model = decoder(layer(dispatcher=Sorted(ahead)))
    jax.eval_shape(model.init, jax.random.key(0), BATCH)
    with pytest.raises(DependenceError, match="dispatcher Sorted with priority by_score"):
        jax.eval_shape(functools.partial(model.init, train=True), jax.random.key(0), BATCH)


def test_a_group_of_the_whole_batch_is_left_to_the_compiler():
    mesh = data_mesh()

    def axes(model):
        with leakage.in_force(model, mesh):
            return jax.sharding.get_abstract_mesh().axis_names

    assert axes(layer()) == axes(nn.Dense(F)) == mesh.axis_names
    assert axes(layer(rows=None)) == jax.sharding.get_abstract_mesh().axis_names == ()


def test_decoding_with_a_cache_refuses_what_depends_on_the_batch():
    model = decoder(LAYERS["shared capacity"][0])
    params = jax.eval_shape(model.init, jax.random.key(0), BATCH)["params"]
    start = lambda params, **allowed: model.apply({"params": params}, 2, 4, method="start", **allowed)
    with pytest.raises(DependenceError, match=r"group_rows None.*allow_batch_dependence=True of `start`"):
        jax.eval_shape(start, params)
    cache = jax.eval_shape(functools.partial(start, allow_batch_dependence=True), params)
    assert cache.valid.shape == (1, 2, 4)


def config(feed_forward):
    tower = dict(
        name="dual_encoder.towers.Tower",
        encoder=dict(
            name="backbones.encoder.TransformerEncoder",
            num_layers=1,
            embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=V, width=D),
            block=dict(
                name="backbones.blocks.PreNorm",
                attention=dict(name="backbones.attention.SelfAttention", heads=2),
                feed_forward=feed_forward,
            ),
        ),
        pooler=dict(name="dual_encoder.poolers.mean"),
    )
    model = dict(name="dual_encoder.towers.tied", tower=tower)
    objective = dict(name="dual_encoder.objectives.softmax.info_nce", temperature=0.05)
    return {"task": dict(name="dual_encoder.task.Contrastive", model=model, objective=objective)}


def test_a_run_whose_vectors_depend_on_the_batch_is_not_opened_to_encode(tmp_path):
    experts = dict(name="moe.experts.Dense", width=F)
    soft = lambda rows: dict(name="moe.soft.Soft", num_experts=E, experts=experts, group_rows=rows)
    with pytest.raises(
        DependenceError, match=r"query\.encoder\.block\.feed_forward.*Soft.*--allow_batch_dep"
    ):
        Trained.load(tmp_path, config(soft(None)))
    # What comes next is the config's missing text.
    with pytest.raises(KeyError, match="text"):
        Trained.load(tmp_path, config(soft(None)), allow_batch_dependence=True)
    with pytest.raises(KeyError, match="text"):
        Trained.load(tmp_path, config(soft(1)))
