"""Our T5 and its constrained search against those of Hugging Face; see tests/golden/make_t5_tiny.py."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import t5
from generative_retrieval import beam, speller, trie
from training.build import build

HEADS = 4
# It runs once, so that compiling is what takes time.
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "t5_tiny.npz") as held:
        return dict(held)


@pytest.fixture(scope="module")
def ours(golden):
    """The model and its parameters."""
    state = {name.removeprefix("state."): x for name, x in golden.items() if name.startswith("state.")}
    model = build(t5.spec(words=23, symbols=6, width=16, hidden=24, heads=HEADS, layers=2))
    return model, {"params": jax.tree.map(jnp.asarray, t5.parameters(state, HEADS))}


def test_the_parameters_are_all_that_the_model_has(ours, golden):
    model, variables = ours
    batch = {name: golden[name] for name in ("tokens", "mask", "targets")}
    made = jax.eval_shape(model.init, jax.random.key(0), batch | {"target_mask": golden["targets"] > 0})
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, variables)


def test_logits_search_and_scores_are_hugging_faces(ours, golden):
    model, variables = ours
    built = trie.build(golden["docids"], 6)
    queries = {name: golden[name] for name in ("tokens", "mask")}

    def both(variables):
        ids = {"targets": golden["targets"], "target_mask": golden["targets"] > 0}
        logits = model.apply(variables, queries | ids).logits
        return logits, beam.search(speller.of(model, variables, queries), built, beams=5, results=5)

    logits, found = jax.jit(both, compiler_options=QUICK)(variables)
    assert np.abs(logits - golden["logits"]).max() <= 1e-5 * np.abs(golden["logits"]).max()
    np.testing.assert_array_equal(golden["docids"][np.asarray(found.documents_Bn)], golden["found"])
    assert np.abs(found.scores_Bn - golden["scores"]).max() <= 1e-5 * np.abs(golden["scores"]).max()
