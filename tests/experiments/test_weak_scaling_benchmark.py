"""Weak scaling: the closed form of what a chip sends, on eight simulated devices and on TPU slices."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dual_encoder import blockwise
from dual_encoder.candidates import Candidates
from experiments.benchmarks import weak_scaling
from training import collectives, hlo
from training import mesh as meshes


def test_examples_in_docstrings():
    assert doctest.testmod(weak_scaling).failed == 0


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 4}])
def test_the_ring_sends_its_closed_form(sizes):
    """Here nothing is rounded on its way: vectors are 4 bytes a number."""
    rows, width = 16, 32
    mesh = meshes.Layout(sizes).mesh()
    split = NamedSharding(mesh, P(meshes.BATCH_AXES))
    like = partial(jax.ShapeDtypeStruct, sharding=split)
    vectors, numbers = like((8 * rows, width), jnp.float32), like((8 * rows,), jnp.int32)
    positives = like((8 * rows, 1), jnp.int32)

    @partial(jax.value_and_grad, argnums=(0, 1))
    def loss(q, d, labels, positives, document_rows):
        candidates = Candidates(positives, document_rows)
        return blockwise.info_nce(q, d, labels=labels, candidates=candidates, temperature=0.1)[0]

    with jax.set_mesh(mesh):
        compiled = jax.jit(loss).lower(vectors, vectors, numbers, positives, numbers).compile()
    found, unknown = collectives.find(hlo.parse(compiled.as_text()), mesh.shape)
    assert unknown == ()
    sent = {
        kind: sum(times * one.sent_bytes for one, times in found.items() if one.kind == kind)
        for kind in {one.kind for one in found}
    }
    expected = weak_scaling.closed_form(8, rows, width, 0, 0, element_bytes=4)
    assert sent.pop("collective-permute") == expected
    # The form that the docstring of dual_encoder.blockwise has.
    assert expected == 4 * rows * (width * (3 * 8 - 2) + 2 * (8 - 1))
    assert sum(sent.values()) < 0.01 * expected  # a few scalars over all devices


def test_parameters_are_those_of_the_model():
    in_layers, outside = weak_scaling.parameters()
    width, layers = weak_scaling.WIDTH, weak_scaling.LAYERS
    assert in_layers == layers * (4 * width**2 + 8 * width**2 + 2 * width)
    assert outside == weak_scaling.VOCAB_SIZE * width + width


@pytest.mark.tpu_plan
@pytest.mark.parametrize("largest", ["v5e:8x8", pytest.param("v5e:16x16", marks=pytest.mark.slow)])
def test_from_16_chips_on(largest, tpu_devices):
    del tpu_devices
    record = weak_scaling.measure(["v5e:4x4", largest])
    assert record["points"][-1]["batch"] == weak_scaling.ROWS * record["points"][-1]["chips"]
    assert record["temporaries_ratio"] < 1.1
    assert record["sent_difference"] < 0.02
