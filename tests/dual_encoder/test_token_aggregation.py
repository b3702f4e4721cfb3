import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones.attention import SelfAttention
from backbones.blocks import PreNorm
from backbones.embedding import TokenEmbedding
from backbones.encoded import Encoded
from backbones.encoder import TransformerEncoder
from dual_encoder import token_aggregation, towers
from dual_encoder.objectives import softmax
from dual_encoder.objectives.parts import with_parts
from dual_encoder.token_aggregation import TokenAggregation, folded
from moe.feed_forward import Dense
from training import paths

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 6)).astype(np.float32)
MASK = np.array([[True, True, True, False], [True, True, True, True]])


def test_folded_by_hand():
    # d = 2, so slices of 4 words, the last filled up: columns are max(1, 7), max(5, 2), max(3, 0), max(3, 0).
    found = folded(jnp.array([[1.0, 5, 3, 3, 7, 2]]), 2)
    np.testing.assert_array_equal(found, [[7, -3]])  # 7 > 5; 3 is not above 3


def encoded(x=X, mask=MASK):
    return Encoded(jnp.asarray(x), jnp.asarray(mask))


def test_against_numpy_and_padding_changes_nothing():
    pooler = TokenAggregation(TokenEmbedding(7, 6), width=3, first_width=2)
    shapes = jax.eval_shape(pooler.init, jax.random.key(0), encoded())
    params = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), shapes)
    apply = jax.jit(pooler.apply)
    found = np.asarray(apply(params, encoded()))
    of = params["params"]
    for row, length in enumerate(MASK.sum(1)):
        x = X[row, :length]
        first = x[0] @ of["first"]["kernel"] + of["first"]["bias"]
        h = np.asarray(jax.nn.gelu(x @ of["transform"]["kernel"] + of["transform"]["bias"]))
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
        h = h * of["transform_norm"]["scale"] + of["transform_norm"]["bias"]
        p = np.exp(h @ of["embed"]["table"].T + of["bias"])
        p /= p.sum(-1, keepdims=True)
        w = x @ of["weight"]["kernel"] + of["weight"]["bias"]
        words = np.maximum((p * w)[1:].max(0), 0)
        expected = np.concatenate([first, folded(words[None], 3)[0]])
        assert np.abs(found[row] - expected).max() <= 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(apply(params, encoded(np.where(MASK[:, :, None], X, np.nan))), found)
    np.testing.assert_array_equal(apply(params, encoded(mask=np.zeros_like(MASK))), 0)


def test_the_head_has_the_table_of_the_encoder():
    encoder = TransformerEncoder(TokenEmbedding(9, 8), PreNorm(SelfAttention(heads=2), Dense(8)), 1)
    model = towers.tied(token_aggregation.tower(encoder, width=3, first_width=2))
    texts = {"tokens": np.ones((1, 2), int), "mask": np.ones((1, 2), int)}
    shapes = jax.eval_shape(model.init, jax.random.key(0), texts, texts)["params"]
    assert [path for path in paths.paths(shapes) if "table" in path] == ["query/encoder/embed/table"]
    assert jax.eval_shape(model.apply, {"params": shapes}, texts, texts)[0].shape == (1, 5)


def test_parts_are_losses_of_their_own():
    query, document = RNG.normal(size=(3, 5)), RNG.normal(size=(3, 5))
    given = dict(labels=jnp.arange(3), where=jnp.ones((3, 3), bool), temperature=1.0)
    alone = lambda cut: softmax.info_nce(jnp.asarray(query[:, cut]), jnp.asarray(document[:, cut]), **given)[
        0
    ]
    objective = with_parts(objective=softmax.info_nce, widths=(2, 3))
    loss, metrics = objective(jnp.asarray(query), jnp.asarray(document), **given)
    expected = alone(slice(0, 5)) + 0.5 * (alone(slice(0, 2)) + alone(slice(2, 5)))
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert metrics["part0"] == pytest.approx(float(alone(slice(0, 2))), rel=1e-6)
    with pytest.raises(ValueError, match="together 5"):
        with_parts(objective=softmax.info_nce, widths=(2, 2))(
            jnp.asarray(query), jnp.asarray(document), **given
        )
