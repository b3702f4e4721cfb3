import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones.attention import SelfAttention
from backbones.blocks import PreNorm
from backbones.embedding import TokenEmbedding
from backbones.encoder import TransformerEncoder
from dual_encoder import poolers, towers
from dual_encoder.objectives import softmax
from dual_encoder.task import Contrastive, documents, queries
from dual_encoder.two_dimensional import TwoDimensional, alignment, cut_to, shortened
from moe.feed_forward import Dense
from training import paths

LAYERS = 3


def task(**fields):
    block = PreNorm(SelfAttention(heads=2), Dense(8))
    encoder = TransformerEncoder(TokenEmbedding(12, 8), block, LAYERS, return_layers=True, norm_layers=True)
    base = Contrastive(towers.tied(towers.Tower(encoder, poolers.mean)), softmax.info_nce, temperature=0.1)
    return TwoDimensional(base, **{"widths": (4,), **fields})


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    arrays = {}
    for side, shape in {"query": (4, 3), "document": (4, 1, 5)}.items():
        arrays[f"{side}_tokens"] = rng.integers(0, 12, shape)
        arrays[f"{side}_mask"] = (rng.random(shape) < 0.7) | (np.arange(shape[-1]) == 0)
        arrays[f"{side}_segments"] = np.zeros(shape)
    arrays["document_rows"] = arrays["positives"] = np.arange(4)[:, None]
    return {name: x.astype(np.int32) for name, x in arrays.items()}


@functools.cache
def params():
    found, state = jax.eval_shape(task().init, jax.random.key(0), batch())
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape).astype(np.float32), found), state


def softmaxes(x, scale):
    x = np.exp(scale * np.asarray(x, np.float64))
    return x / x.sum(1, keepdims=True)


@pytest.mark.slow
def test_the_loss_is_the_sum_over_layers_and_widths():
    of = task(align=2.0, align_temperature=0.5)
    loss, (_, metrics) = jax.jit(functools.partial(of.loss, train=True))(
        *params(), batch(), jax.random.key(3)
    )
    variables = of.variables(*params())
    each = []  # of every layer, by early exit: the vectors of queries and of documents
    for layers in range(1, LAYERS + 1):
        model, cut = shortened(of.model, variables, layers)
        each.append([np.asarray(x) for x in jax.jit(model.apply)(cut, queries(batch()), documents(batch()))])
    given = dict(labels=jnp.arange(4), where=jnp.ones((4, 4), bool), temperature=0.1)
    short = lambda x: x[:, :4] / np.linalg.norm(x[:, :4], axis=1, keepdims=True)
    of_pair = lambda pair: float(softmax.info_nce(*map(jnp.asarray, pair), **given)[0])
    last = each[-1]
    candidates = []
    for drawn in each[:-1]:
        total = of_pair(last) + of_pair(map(short, last)) + of_pair(drawn) + of_pair(map(short, drawn))
        for width, cut in ((8, lambda x: x), (4, short)):
            for x, teacher in zip(drawn, last, strict=True):
                p, t = (softmaxes(cut(side), width**0.5 / 0.5) for side in (x, teacher))
                total += 2.0 * (t * np.log(t / p)).sum(1).mean() / 2
        candidates.append(total)
    # Which layer is drawn is the key's; it is one of those below the last.
    assert min(abs(float(loss) - total) for total in candidates) <= 1e-5 * abs(float(loss))
    assert abs(candidates[0] - candidates[1]) > 1e-2
    assert metrics["last_cut"] == pytest.approx(of_pair(map(short, last)), rel=1e-5)


def test_an_early_exit_costs_the_first_layers_alone():
    model, variables = shortened(task().model, task().variables(*params()), 1)
    assert model.query is model.document
    shapes = {
        path: x.shape for path, x in zip(paths.paths(variables), jax.tree.leaves(variables), strict=True)
    }
    assert {shape[0] for path, shape in shapes.items() if "/block/" in path} == {1}
    assert shapes["params/query/encoder/embed/table"] == (12, 8)
    with pytest.raises(ValueError, match="layers is 4; allowed: 1 to 3"):
        shortened(task().model, variables, 4)


def test_cut_vectors_and_an_alignment_with_itself():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32))
    kept = cut_to(x, jnp.int32(2), normalize=True)
    np.testing.assert_array_equal(kept[:, 2:], 0)
    np.testing.assert_allclose(jnp.linalg.norm(kept, axis=1), 1, rtol=1e-6)
    assert alignment(x, x, 6, 1.0, scaled=False) == pytest.approx(0, abs=1e-6)
    gradient = jax.grad(lambda t: alignment(x, t, 4, 1.0, scaled=False))(x[::-1])
    np.testing.assert_array_equal(gradient, 0)


def test_what_it_needs_is_said():
    with pytest.raises(ValueError, match=r"widths is \(\)"):
        task(widths=())
    with pytest.raises(ValueError, match="layers of 8; allowed: widths up"):
        jax.eval_shape(
            functools.partial(task(widths=(9,)).loss, train=True), *params(), batch(), jax.random.key(0)
        )
