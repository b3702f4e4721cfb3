import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from backbones.encoded import Encoded
from dual_encoder import poolers, towers
from training.build import build


def encoder(width=8):
    return {
        "name": "backbones.bag.BagOfSubwords",
        "embed": {"name": "backbones.embedding.TokenEmbedding", "vocab_size": 20, "width": width},
    }


def tower(**kwargs):
    return {
        "name": "dual_encoder.towers.Tower",
        "encoder": encoder(),
        "pooler": {"name": "dual_encoder.poolers.mean"},
        **kwargs,
    }


def texts(seed, rows=3, length=5):
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.integers(5, 20, (rows, length)),
        "mask": np.ones((rows, length), np.int32),
        "segments": np.zeros((rows, length), np.int32),
    }


def tables(params):
    return [path for path, _ in jax.tree_util.tree_leaves_with_path(params) if "table" in str(path)]


def test_tied_towers_are_one():
    model = build({"name": "dual_encoder.towers.tied", "tower": tower()})
    params = model.init(jax.random.key(0), texts(0), texts(1))["params"]
    assert len(tables(params)) == 1
    query, document = model.apply({"params": params}, texts(0), texts(0))
    np.testing.assert_array_equal(query, document)


def test_separate_towers_share_nothing():
    model = build({"name": "dual_encoder.towers.separate", "query": tower(), "document": tower()})
    params = model.init(jax.random.key(0), texts(0), texts(1))["params"]
    assert len(tables(params)) == 2
    query, document = model.apply({"params": params}, texts(0), texts(0))
    assert np.abs(query - document).max() > 0.1


def test_shared_embedding_shares_the_table_alone():
    head = {"name": "flax.linen.Dense", "features": 4}
    model = build(
        {
            "name": "dual_encoder.towers.shared_embedding",
            "query": tower(head=head),
            "document": tower(head=head),
        }
    )
    params = model.init(jax.random.key(0), texts(0), texts(1))["params"]
    assert len(tables(params)) == 1
    assert len([p for p, _ in jax.tree_util.tree_leaves_with_path(params) if "kernel" in str(p)]) == 2
    grads = jax.grad(lambda p: model.apply({"params": p}, texts(0), texts(1))[1].sum())(params)
    table = next(x for path, x in jax.tree_util.tree_leaves_with_path(grads) if "table" in str(path))
    assert np.abs(table).max() > 0  # the document side trains the table that the query side reads


def test_shared_embedding_refuses_an_encoder_without_one():
    with pytest.raises(ValueError, match="query encoder Dense has no `embed`"):
        towers.shared_embedding(towers.Tower(nn.Dense(3), None), towers.Tower(nn.Dense(3), None))


@pytest.mark.parametrize("normalize", [True, False])
def test_normalize(normalize):
    model = build(tower(normalize=normalize))
    params = model.init(jax.random.key(0), texts(0))
    norms = np.linalg.norm(model.apply(params, texts(0)), axis=1)
    assert np.allclose(norms, 1.0, atol=1e-6) == normalize


def test_a_text_without_tokens_has_finite_vector_and_gradient():
    model = build(tower())
    batch = {**texts(0), "mask": np.zeros((3, 5), np.int32)}
    params = model.init(jax.random.key(0), batch)
    np.testing.assert_array_equal(model.apply(params, batch), 0.0)
    grads = jax.grad(lambda p: jnp.square(model.apply(p, batch) - 1).sum())(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_sums_that_no_loss_takes_are_not_lost_in_silence():
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, batch, *, train=False):
            return Encoded(jnp.ones((3, 1, 2)), jnp.ones((3, 1), bool), aux={"expert_counts": jnp.ones(4)})

    tower = towers.Tower(Counting(), poolers.mean)
    with pytest.raises(ValueError, match=r"sums \(expert_counts\)"):
        tower.apply({}, texts(0), train=True)
    assert tower.apply({}, texts(0)).shape == (3, 2)


def test_normalizing_zero_has_a_gradient_of_zero():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(towers.l2_normalize(x), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    grad = jax.grad(lambda x: (towers.l2_normalize(x) * jnp.array([[1.0, 2.0]])).sum())(x)
    # Of (a, b) / |(a, b)| against (1, 2): (1 - 0.6 * 2.2) / 5, (2 - 0.8 * 2.2) / 5.
    np.testing.assert_allclose(grad, [[0, 0], [-0.064, 0.048]], atol=1e-6)
