"""Every variant of a config: its Task is built, and the rules of its mesh are for its parameters."""

import jax
import optax
import pytest

from configs.generative_retrieval import variants
from generative_retrieval.task import smallest_batch
from training import rules
from training.build import build, fill
from training.mesh import Layout
from training.task import create


@pytest.mark.parametrize("variant", variants.VARIANTS)
def test_a_variant_is_built_and_lies_on_a_mesh(variant):
    config = variants.get_config(f"variant={variant},width=64,documents=12,capacity=15").to_dict()
    task = build(config["task"], "config.task")
    first = lambda key: create(task, optax.sgd(0.1), key, smallest_batch(task.model))
    state = jax.eval_shape(first, jax.random.key(0))
    axes = config["mesh"]["axes"] | dict(data=2, fsdp=4)
    layout = fill(Layout, config["mesh"] | dict(axes=axes), "config.mesh")
    placed = rules.shardings(state, layout.mesh(), layout.parameters).params
    assert any("fsdp" in str(leaf.spec) for leaf in jax.tree.leaves(placed))


def test_one_vector_has_a_softmax_of_the_documents_there_are_and_rows_to_spare():
    model = variants.get_config("variant=one_vector,documents=12,capacity=15").task.model
    assert (model.documents, model.spare) == (12, 3)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="variant='dsi'; allowed: decoder_only, one_vector"):
        variants.get_config("variant=dsi")
