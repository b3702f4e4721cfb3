"""The Task and the scorer: its loss from scores by hand, one mesh as another, batches that change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.dual_encoder import parts
from corpora.tokens import TokenTable
from cross_encoder import losses
from cross_encoder.pairs import PairTable
from cross_encoder.scoring import PairScorer
from cross_encoder.task import Ranking, smallest_batch
from training import mesh as meshes
from training.build import build

V = 40


@pytest.fixture(scope="module")
def model():
    """A bag whose segments weigh differently: it is compiled at once, and each pair has its own score."""
    tower = parts.bag_tower(V, 8, segment_weights=(1.0, 2.0, 0.5, 3.0))
    spec = {"encoder": tower["encoder"], "pooler": tower["pooler"]}
    return build({"name": "cross_encoder.model.CrossEncoder", **spec})


def texts(rng, lengths):
    tokens = rng.integers(5, V, sum(lengths)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TokenTable(tokens, np.zeros(len(tokens), np.uint8), offsets, pad_id=0)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    return PairTable(texts(rng, [3, 5, 4]), texts(rng, [2, 20, 9, 6, 14]), [1], mark_matches=True)


def test_the_loss_is_the_objective_of_every_pairs_score(model, table):
    rows = np.array([[1, 0, -1], [2, 4, 3]])
    pairs = table.rectangle(np.repeat([0, 2], 3), rows.reshape(-1), 32)
    batch = {name: jnp.asarray(x.reshape(2, 3, 32)) for name, x in pairs.items()}
    batch["document_rows"] = jnp.asarray(rows)
    task = Ranking(model, objective=losses.pointwise)
    params, state = jax.jit(task.init)(jax.random.key(0), batch)
    shapes = jax.eval_shape(task.init, jax.random.key(0), smallest_batch(model))[0]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    loss, (_, metrics) = jax.jit(lambda *a: task.loss(*a, jax.random.key(1), train=False))(
        params, state, batch
    )
    apply = jax.jit(lambda pair: model.apply(task.variables(params, state), pair)[0])
    one = {name: jnp.asarray(x) for name, x in pairs.items()}
    scores = apply(one).reshape(2, 3)
    expected, of_scores = losses.pointwise(scores, where=jnp.asarray(rows >= 0))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["accuracy"]) == float(of_scores["accuracy"])


@pytest.mark.parametrize("devices", [1, 8])
def test_scores_are_those_of_each_pair_by_itself(model, table, devices):
    task = Ranking(model)
    params, state = jax.jit(task.init)(jax.random.key(0), smallest_batch(model))
    rows = np.array([[4, -1, 0, 1], [-1, -1, -1, -1], [2, 3, -1, 4]])
    scorer = PairScorer(model, length=26, batch_size=3, mesh=meshes.data_mesh(jax.devices()[:devices]))
    variables = scorer.place(task.variables(params, state))
    found = scorer(variables, table, np.array([2, 1, 0]), rows)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), rows < 0)
    apply = jax.jit(lambda batch: model.apply(task.variables(params, state), batch)[0])
    for query, place in zip(*np.nonzero(rows >= 0), strict=True):
        alone = table.rectangle(np.array([2 - query]), np.array([rows[query, place]]), 26)
        expected = apply({name: jnp.asarray(x) for name, x in alone.items()})
        np.testing.assert_allclose(found[query, place], expected[0], rtol=1e-4, atol=1e-5)
    assert scorer.tokens == table.lengths(np.array([[2], [1], [0]]) + np.zeros_like(rows), rows).sum()
    assert scorer.computed >= scorer.tokens


def test_it_refuses_what_is_no_cross_encoder(model):
    with pytest.raises(ValueError, match="allowed: a cross_encoder"):
        Ranking(model.encoder)
    with pytest.raises(ValueError, match="objective is 3"):
        Ranking(model, objective=3)
