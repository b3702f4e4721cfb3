import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones import masks, prefix
from backbones.attention import SelfAttention
from backbones.bag import BagOfSubwords
from backbones.blocks import PreNorm
from backbones.embedding import TokenEmbedding
from backbones.encoder import TransformerEncoder
from backbones.prefix import Prefix
from moe.feed_forward import Context, Dense
from training import paths, warm_start

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 8)).astype(np.float32)
CONTEXT = Context(valid=jnp.array([[True, True, False], [True, True, True]]), domains=jnp.array([1, 0]))


def filled(shapes):
    return jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), shapes)


def test_a_text_sees_the_keys_and_values_of_its_domain():
    attention = SelfAttention(heads=2, prefix=Prefix(length=4, domains=2))
    visible = masks.causal(CONTEXT)
    of = lambda p, x, visible: attention.apply(p, x, CONTEXT, visible=visible)
    shapes = jax.eval_shape(lambda: attention.init(jax.random.key(0), X, CONTEXT, visible=visible))
    params = filled(shapes)
    found = jax.jit(of)(params, X, visible)
    kernels, learned = params["params"], params["params"]["prefix"]
    for row, domain in enumerate([1, 0]):
        q, k, v = (X[row] @ kernels[name]["kernel"] for name in ("query", "key", "value"))
        k = np.concatenate([learned["keys"][domain].reshape(4, 8), k])
        v = np.concatenate([learned["values"][domain].reshape(4, 8), v])
        mixed = []
        for head in (slice(0, 4), slice(4, 8)):
            weights = np.exp(q[:, head] @ k[:, head].T / 2)
            weights[:, 4:] *= np.asarray(visible)[row, 0]
            mixed.append(weights / weights.sum(-1, keepdims=True) @ v[:, head])
        expected = np.concatenate(mixed, -1) @ kernels["out"]["kernel"]
        assert np.abs(found[row] - expected).max() <= 1e-5 * np.abs(expected).max()


def encoder():
    block = PreNorm(SelfAttention(heads=2), Dense(8))
    return TransformerEncoder(TokenEmbedding(9, 8), block, 2)


def texts():
    return {"tokens": np.array([[1, 2, 0]]), "mask": np.array([[1, 1, 0]]), "domains": np.array([1])}


def params_of(model):
    return filled(jax.eval_shape(model.init, jax.random.key(0), texts()))


def test_prompts_are_all_that_is_new_and_can_be_taken_from_another_run():
    plain, prompted = (
        params_of(m)["params"] for m in (encoder(), prefix.prefixed(encoder(), length=3, domains=2))
    )
    more = set(paths.paths(prompted)) - set(paths.paths(plain))
    assert more == {"block/attention/prefix/keys", "block/attention/prefix/values"}
    assert prompted["block"]["attention"]["prefix"]["keys"].shape == (2, 2, 3, 2, 4)
    other = filled(prompted)
    swapped, report = warm_start.merge(prompted, other, [("(prefix/.*)", r"\1"), (".*", None)])
    assert set(report.loaded) == more
    for path in paths.paths(swapped):
        pick = lambda tree: dict(zip(paths.paths(tree), jax.tree.leaves(tree), strict=True))[path]  # noqa: B023
        np.testing.assert_array_equal(pick(swapped), pick(other if path in more else prompted))


def test_what_it_needs_is_said():
    with pytest.raises(ValueError, match="BagOfSubwords has no attention"):
        prefix.prefixed(BagOfSubwords(TokenEmbedding(9, 8)), length=3)
    model = prefix.prefixed(encoder(), length=3, domains=2)
    batch = {name: x for name, x in texts().items() if name != "domains"}
    with pytest.raises(ValueError, match="domains is 2 and the batch has no 'domains'"):
        jax.eval_shape(model.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match="length is 0"):
        jax.eval_shape(prefix.prefixed(encoder(), length=0).init, jax.random.key(0), texts())
