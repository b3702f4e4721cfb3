import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones.encoded import Encoded
from dual_encoder import attention_poolers, poolers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 8)).astype(np.float32)
LAYERS = RNG.normal(size=(2, 2, 3, 8)).astype(np.float32)
MASK = np.array([[True, True, False], [True, True, True]])
POOLERS = {
    "last": attention_poolers.LastLayer(latents=3, heads=2),
    "all": attention_poolers.AllLayers(latents=3, heads=2),
    "latent": attention_poolers.LatentAttention(latents=5, heads=2, head_width=3),
}


def encoded(x=X, layers=LAYERS, mask=MASK):
    return Encoded(jnp.asarray(x), jnp.asarray(mask), jnp.asarray(layers))


def params_of(pooler):
    """No parameter at the value that it begins with."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(pooler.init, jax.random.key(0), encoded())
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def pooled(pooler, params, given):
    return np.asarray(jax.jit(pooler.apply)(params, given))


@pytest.mark.parametrize("name", POOLERS)
def test_padding_changes_nothing_and_an_empty_text_is_zero(name):
    pooler, params = POOLERS[name], params_of(POOLERS[name])
    hidden = MASK[:, :, None]
    garbage = encoded(np.where(hidden, X, np.nan), np.where(hidden[None], LAYERS, np.nan))
    found = pooled(pooler, params, encoded())
    np.testing.assert_array_equal(pooled(pooler, params, garbage), found)
    assert np.abs(found).min() > 0
    np.testing.assert_array_equal(pooled(pooler, params, encoded(mask=np.zeros_like(MASK))), 0.0)


def norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def cross(x_LD, y_MD, params, heads, head):
    """The block in NumPy, of one text."""
    q = norm(x_LD, params["norm"]) @ params["query"]["kernel"]
    k, v = (norm(y_MD, params["seen_norm"]) @ params[name]["kernel"] for name in ("key", "value"))
    found = []
    for number in range(heads):
        cut = slice(number * head, (number + 1) * head)
        weights = np.exp(q[:, cut] @ k[:, cut].T / np.sqrt(head))
        found.append(weights / weights.sum(-1, keepdims=True) @ v[:, cut])
    x_LD = x_LD + np.concatenate(found, -1) @ params["out"]["kernel"]
    of = params["feed_forward"]
    h = norm(x_LD, params["feed_forward_norm"])
    product = lambda name, h: h @ of[name]["kernel"] + of[name]["bias"]
    return x_LD + product("out", np.asarray(jax.nn.gelu(product("gate", h))) * product("in", h))


@pytest.mark.parametrize("name", POOLERS)
def test_against_numpy(name):
    pooler, params = POOLERS[name], params_of(POOLERS[name])
    of = jax.tree.map(np.asarray, params["params"])
    expected = []
    for row in range(2):
        x_LD = X[row][MASK[row]]
        if name == "last":
            found = cross(of["latents"], x_LD, of["block"], 2, 4)
        elif name == "latent":
            found = cross(x_LD, of["latents"], of["block"], 2, 3)
        else:
            found = cross(of["latents"], LAYERS[:, row, MASK[row]].mean(1) + of["layer"], of["block"], 2, 4)
        expected.append(found.mean(0))
    found = pooled(pooler, params, encoded())
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_block_that_adds_nothing_leaves_mean_pooling():
    pooler, params = POOLERS["latent"], params_of(POOLERS["latent"])
    block = params["params"]["block"]
    for of, name in ((block, "out"), (block["feed_forward"], "out")):
        of[name] = jax.tree.map(np.zeros_like, of[name])
    np.testing.assert_allclose(pooled(pooler, params, encoded()), poolers.mean(encoded()), rtol=1e-6)


def test_layers_must_be_there():
    with pytest.raises(ValueError, match="return_layers=True"):
        POOLERS["all"].init(jax.random.key(0), Encoded(jnp.asarray(X), jnp.asarray(MASK)))
    with pytest.raises(ValueError, match="latents is 0"):
        attention_poolers.LastLayer(latents=0, heads=2).init(jax.random.key(0), encoded())
