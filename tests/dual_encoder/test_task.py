"""The contrastive Task: its loss by hand, temperature, and the same loss and gradients on 1 and 8 devices."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_encoder import blockwise
from dual_encoder import task as task_module
from dual_encoder.candidates import candidates
from dual_encoder.objectives.softmax import info_nce, symmetric_info_nce
from dual_encoder.task import SMALLEST_BATCH, Contrastive
from eval import measures, on_device
from training import mesh as meshes
from training.activations import constrained
from training.build import build
from training.rules import shardings
from training.task import TrainState

BAG = {
    "name": "backbones.bag.BagOfSubwords",
    "segment_weights": (1.0, 2.0),
    "embed": {"name": "backbones.embedding.TokenEmbedding", "vocab_size": 30, "width": 8},
}
TRANSFORMER = {
    "name": "backbones.encoder.TransformerEncoder",
    "num_layers": 2,
    "embed": {"name": "backbones.embedding.TokenEmbedding", "vocab_size": 30, "width": 16},
    "block": {
        "name": "backbones.blocks.PreNorm",
        "attention": {"name": "backbones.attention.SelfAttention", "heads": 2},
        "feed_forward": {"name": "moe.feed_forward.Dense", "width": 32},
    },
}


@functools.cache
def task(encoder="bag", **fields):
    spec = {
        "name": "dual_encoder.towers.tied",
        "tower": {
            "name": "dual_encoder.towers.Tower",
            "encoder": BAG if encoder == "bag" else TRANSFORMER,
            "pooler": {"name": "dual_encoder.poolers.mean"},
        },
    }
    return Contrastive(build(spec), **fields)


def batch(rows=8, negatives=2, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"query": (rows, 5), "document": (rows, 1 + negatives, 9)}
    arrays = {}
    for side, shape in shapes.items():
        arrays[f"{side}_tokens"] = rng.integers(5, 30, shape)
        arrays[f"{side}_mask"] = (rng.random(shape) < 0.8) | (np.arange(shape[-1]) == 0)
        arrays[f"{side}_segments"] = rng.integers(0, 2, shape)
    arrays["document_rows"] = rng.integers(0, 12, shapes["document"][:2])
    arrays["positives"] = np.stack([arrays["document_rows"][:, 0], rng.integers(-1, 12, rows)], axis=1)
    return {name: array.astype(np.int32) for name, array in arrays.items()}


def loss_and_gradients(of, params, arrays):
    def loss(params):
        return of.loss(params, {}, arrays, jax.random.key(0), train=True)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("negatives", [0, 2])
def test_loss_equals_a_loop_over_queries(negatives):
    arrays = batch(negatives=negatives)
    params, state = task().init(jax.random.key(1), arrays)
    (loss, (_, metrics)), _ = loss_and_gradients(task(), params, arrays)

    def encode(side, i):
        one = {name: arrays[f"{side}_{name}"][i][None] for name in ("tokens", "mask", "segments")}
        return np.asarray(task().model.apply({"params": params["model"]}, one, method="encode_query"))[0]

    rows = list(np.ndindex(arrays["document_rows"].shape))
    documents = {at: encode("document", at) for at in rows}
    losses = []
    for i in range(8):
        relevant = set(arrays["positives"][i]) - {-1}
        scores = {
            at: encode("query", i) @ documents[at] / 0.05
            for at in rows
            if at == (i, 0) or arrays["document_rows"][at] not in relevant
        }
        losses.append(np.log(sum(np.exp(s) for s in scores.values())) - scores[i, 0])
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-4)
    assert float(metrics["temperature"]) == pytest.approx(0.05)
    assert state == {}


@pytest.mark.parametrize("encoder", ["bag", pytest.param("transformer", marks=pytest.mark.slow)])
@pytest.mark.parametrize("objective", [info_nce, symmetric_info_nce])
def test_eight_devices_equal_one(encoder, objective):
    of, arrays = task(encoder, objective=objective, learn_temperature=True), batch(rows=16)
    params, _ = of.init(jax.random.key(1), arrays)
    results = []
    for devices in (1, 8):
        mesh = meshes.data_mesh(jax.devices()[:devices])
        placed = meshes.replicate(params, mesh), meshes.shard_batch(arrays, mesh)
        results.append(jax.device_get(loss_and_gradients(of, *placed)))
    (one, one_grads), (eight, eight_grads) = results
    assert one[0] == pytest.approx(eight[0], rel=1e-6)
    for a, b in zip(jax.tree.leaves(one_grads), jax.tree.leaves(eight_grads), strict=True):
        assert np.max(np.abs(a - b)) <= 1e-5 * np.max(np.abs(b))


def test_measures_are_those_of_the_batch_as_a_corpus():
    of, arrays = task(), batch(rows=16)
    names = {
        "mrr@20": functools.partial(on_device.mrr, topn=20),
        "ndcg@30": functools.partial(on_device.ndcg, topn=30),
    }
    measured = dataclasses.replace(of, measures=names)
    params, _ = of.init(jax.random.key(1), arrays)
    (loss, (_, plain)), grads = loss_and_gradients(of, params, arrays)
    (same_loss, (_, metrics)), same_grads = loss_and_gradients(measured, params, arrays)
    assert metrics.keys() - plain.keys() == {"batch/mrr@20", "batch/ndcg@30"}
    assert float(same_loss) == float(loss)
    jax.tree.map(np.testing.assert_array_equal, same_grads, grads)

    variables = {"params": params["model"]}
    query_BD, document_ND = of.model.apply(
        variables, task_module.queries(arrays), task_module.documents(arrays)
    )
    scores_BN, labels_B = np.asarray(query_BD @ document_ND.T), np.arange(16) * 3
    where_BN = candidates(arrays["positives"], arrays["document_rows"].reshape(-1), labels_B)
    qrels = {f"q{i}": {f"d{own}": 1} for i, own in enumerate(labels_B)}
    run = {f"q{i}": {f"d{n}": scores_BN[i, n] for n in np.flatnonzero(where_BN[i])} for i in range(16)}
    for name, value in measures.means(measures.evaluate(qrels, run, list(names))).items():
        assert 0 < value < 1
        assert float(metrics[f"batch/{name}"]) == pytest.approx(value, rel=1e-5)

    mesh = meshes.data_mesh()
    placed = meshes.replicate(params, mesh), meshes.shard_batch(arrays, mesh)
    (_, (_, sharded)), _ = loss_and_gradients(measured, *placed)
    for name in names:
        assert float(sharded[f"batch/{name}"]) == pytest.approx(float(metrics[f"batch/{name}"]), rel=1e-6)


def test_vectors_that_are_all_the_same_have_no_good_measure():
    measured = dataclasses.replace(task(), measures={"mrr": on_device.mrr})
    arrays = batch()
    arrays = {name: np.ones_like(x) for name, x in arrays.items()} | {
        "document_rows": np.arange(24, dtype=np.int32).reshape(8, 3),
        "positives": np.arange(0, 24, 3, dtype=np.int32)[:, None],
    }
    params, _ = measured.init(jax.random.key(1), arrays)
    (_, (_, metrics)), _ = loss_and_gradients(measured, params, arrays)
    assert float(metrics["batch/mrr"]) == pytest.approx(1 / 24)  # the last of a tie, as for accuracy
    assert float(metrics["accuracy"]) == 0


def test_a_measure_that_is_no_function_is_refused():
    with pytest.raises(
        ValueError, match=r"measures\['mrr@10'\] is 'eval.on_device.mrr'; allowed: a function"
    ):
        Contrastive(None, measures={"mrr@10": "eval.on_device.mrr"})


def test_a_learned_temperature_starts_where_it_is_told_and_has_a_gradient():
    of, arrays = task(learn_temperature=True, temperature=0.2), batch()
    params, _ = of.init(jax.random.key(1), arrays)
    assert float(of.current_temperature(params)) == pytest.approx(0.2)
    _, grads = loss_and_gradients(of, params, arrays)
    assert abs(float(grads["log_temperature"])) > 1e-4
    assert float(of.current_temperature({"log_temperature": jnp.float32(-50.0)})) == pytest.approx(0.01)


def test_parameters_depend_on_no_batch_shape():
    shapes = [
        jax.eval_shape(lambda b=b: task().init(jax.random.key(0), b))[0] for b in (batch(), SMALLEST_BATCH)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        (
            {"temperature": 0.05, "learn_temperature": True, "min_temperature": 0.05},
            "min_temperature is 0.05",
        ),
    ],
)
def test_impossible_temperatures_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Contrastive(None, **fields)


def assert_equal(made, expected):
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(a - b)) <= 1e-5 * np.max(np.abs(b))


@pytest.mark.parametrize(
    ("objective", "axes"),
    [
        (info_nce, None),
        pytest.param(blockwise.symmetric_info_nce, dict(data=2, fsdp=2), marks=pytest.mark.slow),
        pytest.param(info_nce, dict(data=8), marks=pytest.mark.slow),
    ],
)
def test_a_batch_in_chunks_equals_it_at_once(objective, axes):
    at_once = task("bag", objective=objective, learn_temperature=True)
    in_chunks, arrays = dataclasses.replace(at_once, chunks=2), batch(rows=16)
    params, _ = at_once.init(jax.random.key(1), arrays)
    expected = jax.device_get(loss_and_gradients(at_once, params, arrays))
    if axes is None:
        made = loss_and_gradients(in_chunks, params, arrays)
    else:
        mesh = meshes.Layout(axes).mesh()
        with jax.set_mesh(mesh):
            placed = meshes.replicate(params, mesh), meshes.shard_batch(arrays, mesh)
            made = loss_and_gradients(in_chunks, *placed)
    assert_equal(jax.device_get(made), expected)


def test_chunks_with_dropout_equal_a_loop_over_them_with_the_same_keys():
    dropped = dict(BAG, token_dropout=0.3)
    tower = dict(
        name="dual_encoder.towers.Tower", encoder=dropped, pooler=dict(name="dual_encoder.poolers.mean")
    )
    model = build(dict(name="dual_encoder.towers.tied", tower=tower))
    of, arrays = Contrastive(model, chunks=2), batch(rows=8)
    params, _ = of.init(jax.random.key(1), arrays)

    def loop(params):
        query_BD, document_BGD = jnp.zeros((8, 8)), jnp.zeros((8, 3, 8))
        for chunk in range(2):
            rows = {name: x[chunk::2] for name, x in arrays.items()}
            query_RD, document_RD = model.apply(
                {"params": params["model"]},
                task_module.queries(rows),
                task_module.documents(rows),
                train=True,
                rngs={"dropout": jax.random.fold_in(jax.random.key(0), chunk)},
            )
            query_BD = query_BD.at[chunk::2].set(query_RD)
            document_BGD = document_BGD.at[chunk::2].set(document_RD.reshape(4, 3, 8))
        labels_B = jnp.arange(8) * 3
        where_BN = candidates(arrays["positives"], arrays["document_rows"].reshape(-1), labels_B)
        return info_nce(
            query_BD, document_BGD.reshape(24, 8), labels=labels_B, where=where_BN, temperature=0.05
        )[0]

    (loss, _), grads = jax.device_get(loss_and_gradients(of, params, arrays))
    assert_equal((loss, grads), jax.device_get(jax.jit(jax.value_and_grad(loop))(params)))
    (kept, _), _ = loss_and_gradients(dataclasses.replace(of, model=task().model), params, arrays)
    assert abs(float(kept) - float(loss)) > 1e-3  # the dropout is there


@pytest.mark.slow
def test_memory_of_chunks_is_that_of_one():
    objective = functools.partial(blockwise.info_nce, block=16)

    def temporaries(rows, chunks):
        of, arrays = task(objective=objective, chunks=chunks), batch(rows, negatives=0)
        params, _ = jax.eval_shape(of.init, jax.random.key(1), arrays)

        def loss(params, arrays):
            return of.loss(params, {}, arrays, jax.random.key(0), train=True)[0]

        compiled = jax.jit(jax.value_and_grad(loss)).lower(params, arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one, four = temporaries(64, 1), temporaries(256, 4)
    vectors = 2 * 256 * 8 * 4
    assert four <= one + 4 * vectors
    assert temporaries(256, 1) > 2 * four


def test_the_blockwise_objective_is_the_same_task():
    arrays = batch()
    plain = task(objective=symmetric_info_nce, learn_temperature=True)
    params, _ = plain.init(jax.random.key(1), arrays)
    of = dataclasses.replace(plain, objective=functools.partial(blockwise.symmetric_info_nce, block=5))
    assert_equal(*(jax.device_get(loss_and_gradients(x, params, arrays)) for x in (of, plain)))


@pytest.mark.parametrize(
    ("chunks", "axes", "message"),
    [
        (3, None, "chunks is 3, which does not divide the 8 rows of document_mask"),
        (4, dict(data=4), "chunks is 4, which times 4 devices does not divide the 8 rows"),
    ],
)
def test_chunks_that_do_not_divide_are_refused(chunks, axes, message):
    of, arrays = task(chunks=chunks), batch()
    params, _ = of.init(jax.random.key(1), arrays)
    with (
        jax.set_mesh(meshes.Layout(axes).mesh()) if axes else contextlib.nullcontext(),
        pytest.raises(ValueError, match=message),
    ):
        loss_and_gradients(of, params, arrays)


@pytest.mark.parametrize("chunks", [0, 2.0, True])
def test_chunks_that_are_no_count_are_refused(chunks):
    with pytest.raises(ValueError, match=f"chunks is {chunks}; allowed: an integer of at least 1"):
        Contrastive(None, chunks=chunks)


def test_measures_of_scores_that_are_never_there_are_refused():
    with pytest.raises(ValueError, match=r"measures has mrr; allowed: none, \{\}"):
        Contrastive(None, objective=blockwise.info_nce, measures={"mrr": on_device.mrr})


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes",
    [dict(data=2, fsdp=2, tensor=2), dict(fsdp=4, tensor=2), dict(replica=2, data=2, tensor=2)],
    ids=str,
)
def test_chunks_and_blocks_on_split_parameters_equal_one_device(axes):
    objective = functools.partial(blockwise.symmetric_info_nce, block=3)
    of = task("transformer", objective=objective, learn_temperature=True, chunks=2)
    params, _ = of.init(jax.random.key(1), batch(rows=16))
    plain = task("transformer", objective=symmetric_info_nce, learn_temperature=True)
    expected = jax.device_get(loss_and_gradients(plain, params, batch(rows=16)))
    layout = meshes.Layout(
        axes,
        parameters=(
            ("embed/table", ("tensor", "fsdp")),
            ("(query|key|value|in)/kernel", ("fsdp", "tensor")),
            ("out/kernel", ("tensor", "fsdp")),
        ),
        activations=(
            ("embedded|residual", ("batch", None, None)),
            ("heads", ("batch", "tensor", None, None)),
            ("hidden", ("batch", None, "tensor")),
            ("vectors", ("batch", None)),
        ),
    )
    mesh = layout.mesh()
    with jax.set_mesh(mesh):
        where = shardings(TrainState(0, params, {}, {}), mesh, layout.parameters).params
        placed = jax.device_put(params, where)
        traced = constrained(loss_and_gradients, mesh, layout.activations)
        made = traced(of, placed, meshes.shard_batch(batch(rows=16), mesh))
    assert_equal(jax.device_get(made), expected)
