"""Low-rank adapters: at the start nothing, merged the same as beside the kernel, and alone in training."""

import functools

import jax
import numpy as np
import optax
import pytest

from backbones.attention import SelfAttention
from backbones.blocks import PreNorm
from backbones.embedding import TokenEmbedding
from backbones.encoder import TransformerEncoder
from dual_encoder import poolers, towers
from dual_encoder.lora import Lora
from dual_encoder.task import SMALLEST_BATCH, Contrastive
from moe.feed_forward import Dense
from training import paths
from training.build import SpecError
from training.mesh import Layout
from training.start import Start

PLACE = "query.encoder.block.attention"
KERNELS = ("attention/(query|value)/kernel",)


def task(**fields):
    encoder = TransformerEncoder(TokenEmbedding(12, 8), PreNorm(SelfAttention(heads=2), Dense(8)), 2)
    return Contrastive(towers.tied(towers.Tower(encoder, poolers.mean)), **fields)


def batch():
    rng = np.random.default_rng(0)
    arrays = {}
    for side, shape in {"query": (4, 3), "document": (4, 1, 3)}.items():
        arrays[f"{side}_tokens"] = rng.integers(0, 12, shape)
        arrays[f"{side}_mask"], arrays[f"{side}_segments"] = np.ones(shape), np.zeros(shape)
    arrays["document_rows"] = arrays["positives"] = np.arange(4)[:, None]
    return {name: x.astype(np.int32) for name, x in arrays.items()}


@functools.cache
def adapted():
    """The Task and its parameters as they begin, but for those of the model."""
    of = task(lora=Lora(KERNELS, rank=2, alpha=3.0), frozen=("^model/",))
    shapes, state = jax.eval_shape(of.init, jax.random.key(0), SMALLEST_BATCH)
    rng = np.random.default_rng(0)
    model = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes["model"])
    params = {"model": model, "lora": of.lora.init(jax.random.key(0), model)}
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    return of, params, state


def moved(params):
    rng = np.random.default_rng(1)
    other = lambda path, x: rng.normal(size=x.shape).astype(np.float32) if path.endswith("/b") else x
    return paths.map_with_path(other, params)


def test_at_the_start_it_is_the_model_alone():
    of, params, state = adapted()
    jax.tree.map(np.testing.assert_array_equal, of.variables(params, state)["params"], params["model"])


def test_merged_is_what_the_product_beside_the_kernel_gives():
    of, params, state = adapted()
    params = moved(params)
    merged = of.variables(params, state)["params"]["query"]["encoder"]["block"]["attention"]
    kernel = params["model"]["query"]["encoder"]["block"]["attention"]
    adapters = params["lora"]
    x = np.random.default_rng(2).normal(size=(5, 8)).astype(np.float32)
    for name in ("query", "value"):
        a, b = (np.asarray(adapters[f"{PLACE}.{name}.kernel"][half]) for half in "ab")
        for layer in range(2):
            beside = x @ kernel[name]["kernel"][layer] + 1.5 * (x @ a[layer]) @ b[layer]
            found = x @ np.asarray(merged[name]["kernel"][layer])
            assert np.abs(found - beside).max() <= 1e-5 * np.abs(beside).max()
    for name in ("key", "out"):
        np.testing.assert_array_equal(merged[name]["kernel"], kernel[name]["kernel"])


@pytest.mark.slow
def test_only_the_adapters_are_trained_and_kept_by_the_optimizer():
    of, _, _ = adapted()
    start = Start(of, optax.adamw(0.1, weight_decay=0.5), Layout().mesh(), Layout())
    state = jax.jit(start._first)(jax.random.key(0), batch())
    lora = sum(x.size for x in jax.tree.leaves(state.params["lora"]))
    assert lora == 2 * 2 * (8 * 2 + 2 * 8)
    # Two moments of each, and a count.
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) <= 2 * lora + 4
    step = jax.jit(start.step())
    with jax.set_mesh(start.mesh):
        new, metrics = step(state, batch(), jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, new.params["model"], state.params["model"])
    changed = paths.map_with_path(lambda path, x: path.endswith("/b"), state.params["lora"])
    jax.tree.map(
        lambda is_b, x, y: is_b and np.testing.assert_array_less(0, np.abs(x - y).max()),
        changed, new.params["lora"], state.params["lora"],
    )  # fmt: skip
    assert metrics["grad_norm"] > 0


@pytest.mark.slow
def test_a_frozen_parameter_costs_no_gradient():
    """The products of the backward pass: without them, what is frozen is not computed."""

    def products(of):
        start = Start(of, optax.sgd(0.1), Layout().mesh(), Layout())
        shapes = jax.eval_shape(start._first, jax.random.key(0), batch())
        with jax.set_mesh(start.mesh):
            text = jax.jit(start.step()).lower(shapes, batch(), jax.random.key(0)).compile().as_text()
        return text.count(" dot(") + text.count("custom-call")

    whole = task()
    frozen = task(frozen=("encoder/block/",))
    assert products(frozen) < products(whole)


def test_what_cannot_be_adapted_is_refused():
    of = task(lora=Lora(("nowhere",)))
    with pytest.raises(SpecError, match="'nowhere' is found in no parameter"):
        jax.eval_shape(of.init, jax.random.key(0), SMALLEST_BATCH)
    of = task(lora=Lora(KERNELS, rank=9))
    with pytest.raises(ValueError, match="rank 9"):
        jax.eval_shape(of.init, jax.random.key(0), SMALLEST_BATCH)
    with pytest.raises(ValueError, match=r"kernels is \(\); allowed"):
        Lora(())
    start = Start(task(frozen=("nowhere",)), optax.sgd(0.1), Layout().mesh(), Layout())
    with pytest.raises(SpecError, match="frozen: 'nowhere' is found in no parameter"):
        start.shapes(jax.random.key(0), SMALLEST_BATCH)
