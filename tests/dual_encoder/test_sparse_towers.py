"""Mixtures of experts in the towers of a dual encoder: sums and domains by side, state, chunks, groups."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from backbones.attention import SelfAttention
from backbones.blocks import PreNorm
from backbones.embedding import TokenEmbedding
from backbones.encoder import TransformerEncoder
from corpora.tokens import TokenTable
from dual_encoder import poolers, towers
from dual_encoder.encoding import Encoder, best_variables
from dual_encoder.task import Contrastive, smallest_batch
from moe import balance
from moe.auxiliary import Auxiliary
from moe.experts import Dense as DenseExperts
from moe.feed_forward import Dense
from moe.loss_free import LossFree, update
from moe.mixture import Mixture
from moe.one_hot import OneHot
from moe.routers import TopK
from moe.tables import ByDomain
from training import mesh as meshes
from training import paths
from training.checkpoints import Checkpoints
from training.step import make_step
from training.task import TrainState, create

ROWS, LISTED, EXPERTS, LAYERS = 8, 3, 4, 2


def tower(router, vocab_size=30, **fields):
    block = PreNorm(SelfAttention(heads=2), Mixture(router, DenseExperts(16), OneHot(), **fields))
    encoder = TransformerEncoder(TokenEmbedding(vocab_size, 8), block, LAYERS)
    return towers.Tower(encoder, poolers.mean)


def dense_tower():
    block = PreNorm(SelfAttention(heads=2), Dense(8))
    return towers.Tower(TransformerEncoder(TokenEmbedding(30, 8), block, 1), poolers.mean)


LOSSES = {"balance": balance.load_balancing, "z": balance.router_z}
AUXILIARY = Auxiliary(LOSSES, {"balance": 0.5, "z": 0.25})


def task(model=None, auxiliary=AUXILIARY, **fields):
    model = towers.tied(tower(TopK(EXPERTS, 2))) if model is None else model
    return Contrastive(model, auxiliary=auxiliary, **fields)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for side, shape in {"query": (ROWS, 4), "document": (ROWS, LISTED, 6)}.items():
        arrays[f"{side}_tokens"] = rng.integers(5, 30, shape)
        arrays[f"{side}_mask"] = (rng.random(shape) < 0.8) | (np.arange(shape[-1]) == 0)
        arrays[f"{side}_segments"] = np.zeros(shape)
    arrays["document_rows"] = np.arange(ROWS * LISTED).reshape(ROWS, LISTED)
    arrays["positives"] = arrays["document_rows"][:, :1]
    return {name: array.astype(np.int32) for name, array in arrays.items()}


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.abs(np.asarray(x) - np.asarray(y)).max() <= 1e-5 * max(np.abs(y).max(), 1e-30)


def loss_and_gradients(of, params, state, arrays=None):
    def loss(params, arrays):
        return of.loss(params, state, arrays, jax.random.key(0), train=True)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch() if arrays is None else arrays)


@functools.cache
def tied():
    """Parameters, and the sums of the batch."""
    params, state = jax.jit(task().init)(jax.random.key(1), batch())
    assert state == {}
    return params, jax.jit(task().survey)(params, {}, batch(), jax.random.key(0))["query"]


@pytest.mark.slow
def test_a_tied_tower_is_balanced_over_both_sides_together():
    params, sums = tied()
    loss, (_, metrics) = jax.jit(functools.partial(task().loss, train=True))(
        params, {}, batch(), jax.random.key(0)
    )
    f, p = sums["count"].sum(1), sums["probability"].sum(1) / sums["tokens"].sum(1)[:, None]
    expected = float(EXPERTS * (f / f.sum(-1, keepdims=True) * p).sum(-1).mean())
    assert metrics["moe/balance"] == pytest.approx(expected, rel=1e-5)
    tokens = batch()["query_mask"].sum() + batch()["document_mask"].sum()
    assert metrics["moe/z"] == pytest.approx(float(sums["z"].sum(1).mean()) / tokens, rel=1e-5)
    added = 0.5 * metrics["moe/balance"] + 0.25 * metrics["moe/z"]
    assert loss == pytest.approx(float(metrics["contrastive"] + added), rel=1e-6)


@pytest.mark.slow
def test_chunks_give_the_sums_of_the_whole_batch():
    params, sums = tied()
    survey = jax.jit(task(chunks=4).survey)
    close(survey(params, {}, batch(), jax.random.key(0))["query"], sums)


@pytest.mark.slow
def test_chunks_give_the_gradient_of_the_whole_batch():
    params, _ = tied()
    close(loss_and_gradients(task(chunks=4), params, {}), loss_and_gradients(task(), params, {}))


@pytest.mark.slow
def test_what_is_balanced_is_the_batch_of_all_devices():
    params, _ = tied()
    expected = loss_and_gradients(task(), params, {})
    mesh = meshes.data_mesh()
    placed = meshes.replicate(params, mesh), {}, meshes.shard_batch(batch(), mesh)
    with jax.set_mesh(mesh):
        close(jax.device_get(loss_and_gradients(task(), *placed)), expected)


def test_sums_of_microbatches_are_rows_of_those_of_the_batch():
    """What two passes rest on: queries and documents of an example side by side, with their domains."""
    params, whole = tied()
    assert whole["count"].shape == (LAYERS, ROWS * (1 + LISTED), EXPERTS)
    np.testing.assert_array_equal(whole["domains"], np.tile([0, 1, 1, 1], ROWS))
    halves = [{name: x[half] for name, x in batch().items()} for half in (slice(0, 4), slice(4, 8))]
    survey = jax.jit(task().survey)
    first, second = (survey(params, {}, half, jax.random.key(0))["query"] for half in halves)
    for name, x in whole.items():
        close(np.concatenate([first[name], second[name]], axis=0 if name == "domains" else 1), x)


def shapes_of_sums(of):
    params, state = jax.eval_shape(of.init, jax.random.key(1), batch())
    return jax.eval_shape(of.survey, params, state, batch(), jax.random.key(0))


def test_separate_towers_are_balanced_each():
    model = towers.separate(tower(TopK(EXPERTS, 2)), tower(TopK(EXPERTS, 1)))
    rows = lambda sums: {place: of_place["count"].shape[1] for place, of_place in sums.items()}
    assert rows(shapes_of_sums(task(model))) == {"query": ROWS, "document": ROWS * LISTED}
    # A sparse tower may stand beside a dense one.
    model = towers.separate(dense_tower(), tower(TopK(EXPERTS, 1)))
    assert rows(shapes_of_sums(task(model))) == {"document": ROWS * LISTED}


def test_a_router_knows_the_side_of_a_text():
    of = task(towers.tied(tower(ByDomain(EXPERTS))), Auxiliary({}, {}))
    params, state = jax.jit(of.init)(jax.random.key(1), batch())
    sums = jax.jit(of.survey)(params, state, batch(), jax.random.key(0))["query"]
    assert not sums["count"][:, sums["domains"] == 0, 1:].any()
    of_documents = sums["domains"] == 1
    np.testing.assert_array_equal(sums["count"][:, of_documents, 1], sums["tokens"][:, of_documents])


def biased():
    move = functools.partial(update, rate=0.5)
    return task(towers.tied(tower(LossFree(EXPERTS, k=1))), dataclasses.replace(AUXILIARY, bias_update=move))


@pytest.mark.slow
def test_biases_move_once_a_step_by_the_counts_of_the_batch():
    of, optimizer = biased(), optax.sgd(0.1)
    state = jax.jit(functools.partial(create, of, optimizer))(jax.random.key(1), batch())
    assert paths.paths(state.state) == ["balance/query/encoder/block/feed_forward/router/bias"]
    count = jax.jit(of.survey)(state.params, state.state, batch(), jax.random.key(0))["query"]["count"].sum(1)
    expected = 0.5 * np.sign(count.mean(-1, keepdims=True) - count)
    assert np.abs(expected).max() == 0.5
    new, _ = jax.jit(make_step(of, optimizer, microbatches=2))(state, batch(), jax.random.key(0))
    np.testing.assert_array_equal(jax.tree.leaves(new.state)[0], expected)


def test_texts_are_encoded_with_the_state_that_was_kept_as_best(tmp_path):
    of = biased()
    params, state = jax.jit(of.init)(jax.random.key(1), batch())
    state = jax.tree.map(lambda x: x + jnp.array([0.0, 5.0, 0.0, 0.0])[None], state)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save_best(TrainState(np.int32(7), params, state, ()), 0.5)
    checkpoints.close()
    step, variables = best_variables(tmp_path, of)
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, variables, {"params": params["model"], **state})
    tokens = np.random.default_rng(0).integers(5, 30, 20).astype(np.int32)
    table = TokenTable(tokens, np.zeros(20, np.uint8), np.array([0, 6, 20]), pad_id=0)
    encoder = Encoder(of.model, mesh=meshes.data_mesh(jax.devices()[:1]))
    variables = encoder.place(variables)
    found = encoder.documents(variables, table, 16)
    rows = table.rectangle(np.arange(2), 16)
    expected = jax.jit(functools.partial(of.model.apply, method="encode_document"))(variables, rows)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    fresh = {**variables, "balance": jax.tree.map(jnp.zeros_like, variables["balance"])}
    assert np.abs(encoder.documents(fresh, table, 16) - found).max() > 1e-3


def test_groups_of_several_rows_are_encoded_whole():
    model = towers.tied(tower(TopK(EXPERTS, 2), group_rows=3))
    assert len(smallest_batch(model)["query_tokens"]) == 3
    encoder = Encoder(model, batch_size=4, mesh=meshes.data_mesh(jax.devices()[:2]))
    assert encoder._rows(16, by_position=True) == 6


def test_sums_and_losses_go_together():
    model = task().model
    for of, message in (
        (Contrastive(model), "auxiliary is None, but layers of the model give sums"),
        (task(towers.tied(dense_tower())), "auxiliary is given, but no layer of the model gives sums"),
    ):
        params, state = jax.eval_shape(of.init, jax.random.key(0), batch())
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(functools.partial(of.loss, train=True), params, state, batch(), jax.random.key(0))
