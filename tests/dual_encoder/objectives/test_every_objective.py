"""What holds for every objective: the same on 8 devices as on one, in chunks as at once, each query with
its own negatives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dual_encoder.objectives import arrays
from dual_encoder.objectives.distillation import distilled
from dual_encoder.objectives.enlarged import decoupled_info_nce, improved_info_nce
from dual_encoder.objectives.focal import focal_info_nce
from dual_encoder.objectives.matryoshka import matryoshka
from dual_encoder.objectives.mixing import mixed_info_nce
from dual_encoder.objectives.multi_positive import one_to_k
from dual_encoder.objectives.pairwise import hardest_triplet, listed_triplet, sigmoid
from dual_encoder.objectives.passage_centric import pair
from dual_encoder.task import Contrastive
from training import mesh as meshes
from training import ranking
from training.build import build

OBJECTIVES = {
    "sigmoid": sigmoid,
    "listed_triplet": listed_triplet,
    "hardest_triplet": hardest_triplet,
    "focal": focal_info_nce,
    "mixed": mixed_info_nce,
    "one_to_k": one_to_k,
    "pair": pair,
    "improved": improved_info_nce,
    "decoupled": decoupled_info_nce,
    "kl": functools.partial(distilled, contrastive_weight=0.5),
    "margin_mse": functools.partial(distilled, loss=ranking.margin_mse),
    "matryoshka": matryoshka(objective=distilled, widths=(2, 8)),
}
ROWS, LISTED = 16, 3


def close(made, expected):
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(a - b)) <= 1e-5 * np.max(np.abs(b)) > 0


@functools.cache
def model():
    tower = dict(
        name="dual_encoder.towers.Tower",
        encoder=dict(
            name="backbones.bag.BagOfSubwords",
            embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=30, width=8),
        ),
        pooler=dict(name="dual_encoder.poolers.mean"),
    )
    return build(dict(name="dual_encoder.towers.tied", tower=tower))


def batch(seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for side, shape in {"query": (ROWS, 4), "document": (ROWS, LISTED, 6)}.items():
        made[f"{side}_tokens"] = rng.integers(5, 30, shape)
        made[f"{side}_mask"] = np.ones(shape)
        made[f"{side}_segments"] = np.zeros(shape)
    made["document_rows"] = rng.permutation(100)[: ROWS * LISTED].reshape(ROWS, LISTED)
    made["positives"] = np.stack(
        [made["document_rows"][:, 0], np.roll(made["document_rows"][:, 0], 1)], axis=1
    )
    made = {name: x.astype(np.int32) for name, x in made.items()}
    return {**made, "teacher": rng.normal(size=(ROWS, LISTED)).astype(np.float32)}


@pytest.mark.slow
def test_eight_devices_equal_one():
    rng = np.random.default_rng(0)
    vectors = (
        rng.normal(size=(ROWS, 8)).astype(np.float32),
        rng.normal(size=(ROWS * LISTED, 8)).astype(np.float32),
    )

    @jax.jit
    def of_all(q, d, batch):
        found = {}
        for name, objective in OBJECTIVES.items():
            names = arrays.named(objective)
            given = arrays.given(names, batch, 0.5, bias=jnp.float32(-1), rng=jax.random.key(3))
            loss = lambda q, d, objective=objective, given=given: objective(q, d, **given)
            found[name] = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(q, d)
        return found

    results = []
    for devices in (1, 8):
        mesh = meshes.data_mesh(jax.devices()[:devices])
        split = jax.sharding.NamedSharding(mesh, PartitionSpec(mesh.axis_names[0] if devices > 1 else None))
        results.append(
            jax.device_get(of_all(*jax.device_put(vectors, split), jax.device_put(batch(), split)))
        )
    for name, one in results[0].items():
        ((loss, metrics), gradients), ((other, more), others) = one, results[1][name]
        assert other == pytest.approx(loss, rel=1e-5), name
        assert {k: float(x) for k, x in more.items()} == pytest.approx(
            {k: float(x) for k, x in metrics.items()}
        )
        close(others, gradients)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_in_chunks_equals_it_at_once(name):
    at_once = Contrastive(model(), objective=OBJECTIVES[name], temperature=0.5, bias=-1.0)
    params, _ = at_once.init(jax.random.key(1), batch())

    def of(task):
        loss = lambda params: task.loss(params, {}, batch(), jax.random.key(0), train=True)
        return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(params))

    (loss, _), gradients = of(at_once)
    (in_chunks, _), found = of(dataclasses.replace(at_once, chunks=4))
    assert in_chunks == pytest.approx(loss, rel=1e-5)
    close(found, gradients)


def test_gathered_negatives_line_up_with_their_queries():
    # Two hard negatives a query, 8 devices, and chunks: an objective that reports what it sees of each query.
    def report(query_vectors, document_vectors, *, teacher):
        scores_BN = query_vectors @ document_vectors.T
        return scores_BN.sum(), {"listed": arrays.listed(scores_BN, LISTED), "teacher": teacher}

    of, whole = Contrastive(model(), objective=report, chunks=2), batch()
    params, _ = of.init(jax.random.key(1), whole)
    mesh = meshes.data_mesh()
    with jax.set_mesh(mesh):
        placed = meshes.replicate(params, mesh), meshes.shard_batch(whole, mesh)
        loss = jax.jit(lambda params, batch: of.loss(params, {}, batch, jax.random.key(0), train=True))
        _, (_, metrics) = loss(*placed)

    @jax.jit
    def alone(query, document):
        q, d = of.model.apply({"params": params["model"]}, query, document)
        return q @ d.T

    for b in range(ROWS):
        one = lambda side, b=b: {
            name: whole[f"{side}_{name}"][b].reshape(-1, whole[f"{side}_{name}"].shape[-1])
            for name in ("tokens", "mask", "segments")
        }
        np.testing.assert_allclose(metrics["listed"][b], alone(one("query"), one("document"))[0], atol=1e-6)
    np.testing.assert_array_equal(metrics["teacher"], whole["teacher"])


def test_what_a_task_does_not_have_is_refused():
    without = {name: x for name, x in batch().items() if name != "teacher"}
    with pytest.raises(
        ValueError, match=r"the objective needs a teacher's scores; config.batch.teacher names"
    ):
        arrays.given(("teacher",), without, jnp.float32(1))
    with pytest.raises(ValueError, match="the objective needs rng, which this Task does not hand on"):
        arrays.given(("rng",), without, jnp.float32(1))
