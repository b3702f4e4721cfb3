"""One vector a document: the softmax by hand, a dense beginning, and its table in parts on a mesh."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from corpora.tables import DataError
from dual_encoder import retriever, vectors
from dual_encoder.retriever import vectors_folder
from experiments import generative_docids
from experiments.cli import UsageError
from generative_retrieval import beam, speller, trie
from generative_retrieval.docids import Docids
from generative_retrieval.dynamic_retriever import OverDense
from training import mesh as meshes
from training import rules
from training.activations import constrained
from training.build import SpecError, build
from training.mesh import Layout
from training.task import create

D, N, B = 4, 6, 8
OVER_DENSE = "generative_retrieval.dynamic_retriever.OverDense"


def spec(normalize=False, **fields):
    return dict(
        name="generative_retrieval.dynamic_retriever.DynamicRetriever",
        tower=dict(
            name="dual_encoder.towers.Tower",
            encoder=dict(
                name="backbones.bag.BagOfSubwords",
                embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=20, width=D),
            ),
            pooler=dict(name="dual_encoder.poolers.mean"),
            normalize=normalize,
        ),
        **{"documents": N, **fields},
    )


def batch():
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(0, 20, (B, 3), dtype=np.int32),
        "mask": np.ones((B, 3), np.int32),
        "targets": rng.integers(1, N + 1, (B, 1), dtype=np.int32),
        "target_mask": np.ones((B, 1), np.int32),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_of_documents_alone(smoothing):
    task = build(
        dict(
            name="generative_retrieval.task.SequenceToSequence",
            model=spec(spare=3),
            label_smoothing=smoothing,
        )
    )

    @jax.jit
    def run(key):
        params, state = task.init(key, batch())
        loss = lambda params: task.loss(params, state, batch(), key, train=True)[0]
        q_BD = task.model.bind({"params": params["model"]}).tower(batch())
        return params["model"]["rows"]["table"], q_BD, *jax.value_and_grad(loss)(params)

    table, q_BD, value, gradient = jax.device_get(run(jax.random.key(0)))
    assert table.shape == (1 + N + 3, D)
    logits_BN = q_BD @ table[1 : 1 + N].T
    log_p_BN = logits_BN - np.log(np.exp(logits_BN).sum(axis=1, keepdims=True))
    own_B = log_p_BN[np.arange(B), batch()["targets"][:, 0] - 1]
    expected = -np.mean((1 - smoothing) * own_B + smoothing * log_p_BN.mean(axis=1))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    moved = np.abs(gradient["model"]["rows"]["table"]).max(axis=1)
    assert (moved[1 : 1 + N] > 0).all()
    assert (moved[[0, *range(1 + N, 1 + N + 3)]] == 0).all()


def test_a_search_is_the_best_products_without_the_barred():
    model = build(spec(spare=1))
    symbols_NT = np.arange(1, N + 1, dtype=np.int32)[:, None]
    documents = trie.build(symbols_NT, model.docid_size)
    live = np.arange(N) != 2
    allowed = documents.live(live)

    @jax.jit
    def run(key):
        variables = model.init(key, batch())
        queries = speller.of(model, variables, batch())
        found = beam.search(queries, documents, beams=3, results=3, live=allowed)
        return found, model.apply(variables, batch()).logits[:, 0, 1 : 1 + N]

    found, logits_BN = jax.device_get(run(jax.random.key(0)))
    order_BN = np.argsort(-np.where(live, logits_BN, -np.inf), axis=1, kind="stable")
    assert (np.asarray(found.documents_Bn) == order_BN[:, :3]).all()
    log_p_BN = np.asarray(jax.nn.log_softmax(logits_BN))  # the barred one keeps its share
    best_B3 = np.take_along_axis(log_p_BN, order_BN[:, :3], axis=1)
    np.testing.assert_allclose(found.scores_Bn, best_B3, rtol=1e-5)


def store(run, rows, width=D, passages=1):
    def encode(start, stop, report):
        held = np.repeat(np.arange(start, stop), passages)
        return np.stack([held + 1.0] * width, axis=1).astype(np.float32), (held - start).astype(np.int32)

    vectors.write(vectors_folder(run), {}, [str(i) for i in range(rows)], width, encode, title="x")


def test_over_dense_begins_with_the_vectors_of_a_run(tmp_path):
    store(tmp_path, N)
    initial = dict(name=OVER_DENSE, run=str(tmp_path), temperature=0.5)
    model = build(spec(initial=initial, spare=1))
    table = jax.jit(model.init)(jax.random.key(0), batch())["params"]["rows"]["table"]
    np.testing.assert_allclose(table[1 : 1 + N, 0], 2 * np.arange(1, N + 1), rtol=1e-6)
    assert np.abs(table[1 + N]).max() < 2  # drawn
    assert np.abs(table[1 + N]).min() > 0


@pytest.mark.parametrize("wrong", [dict(rows=N + 1), dict(rows=N, width=D + 1), dict(rows=N, passages=2)])
def test_over_dense_refuses_vectors_that_do_not_fit(tmp_path, wrong):
    store(tmp_path, **wrong)
    with pytest.raises(DataError, match=f"allowed: one of width {D} for each, of at most {N}"):
        OverDense(str(tmp_path))(jax.random.key(0), (1 + N, D))


def test_over_dense_refuses_other_documents_and_another_checkpoint(tmp_path, monkeypatch):
    store(tmp_path, N)
    (tmp_path / "config.json").write_text("{}")
    about = {}
    trained = types.SimpleNamespace(identity=lambda: about)
    monkeypatch.setattr(retriever.Trained, "load", lambda *_: trained)
    model = build(spec(initial=dict(name=OVER_DENSE, run=str(tmp_path))))
    ids = [str(i) for i in range(N + 1)]
    model.check(ids)
    for other, first in ((ids[:2] + ids[:1:-1], 2), (ids[:-2], N - 1)):
        with pytest.raises(DataError, match=rf"document {first} of .* is '{first}', which is another"):
            model.check(other)
    about["step"] = 3
    with pytest.raises(DataError, match=r"its best one now \(step is None there and 3"):
        model.check(ids)
    build(spec()).check(ids)  # nothing to look at


def test_more_documents_than_a_model_has_are_refused(tmp_path):
    ids = ["a", "b", "c"]
    Docids(np.arange(1, 4, dtype=np.int32)[:, None], 4, "atomic").save(tmp_path / "docids.npz")
    (tmp_path / "docids.json").write_text(json.dumps(generative_docids._of_documents(ids)))

    def of(documents):
        task = types.SimpleNamespace(model=build(spec(documents=documents, spare=4)))
        dataset = types.SimpleNamespace(doc_ids=ids)
        return generative_docids.of(types.SimpleNamespace(run_dir=tmp_path, dataset=dataset, task=task))

    assert len(of(3)) == 3
    with pytest.raises(UsageError, match="documents of the model is 2, but 3 have docids; allowed: 3"):
        of(2)


def test_refuses_longer_ids_and_no_documents():
    with pytest.raises(ValueError, match="ids have up to 2 symbols; allowed with DynamicRetriever: 1"):
        build(spec()).init(jax.random.key(0), {**batch(), "targets": np.ones((B, 2), np.int32)})
    with pytest.raises(SpecError, match="documents is 0 and spare 0; allowed: at least 1"):
        build(spec(documents=0))


@pytest.mark.parametrize(("data", "fsdp"), [(2, 4), pytest.param(1, 8, marks=pytest.mark.slow)])
def test_a_table_in_parts_equals_a_whole_one(data, fsdp):
    """Loss and gradients, with documents and spare rows over the mesh; N + 1 + spare is 8."""
    task = build(
        dict(name="generative_retrieval.task.SequenceToSequence", model=spec(spare=1, normalize=True))
    )
    found = []
    for shape, devices in (((1, 1), 1), ((data, fsdp), 8)):
        layout = Layout(
            dict(replica=1, data=shape[0], fsdp=shape[1], tensor=1, expert=1),
            [("rows/table", ("fsdp", None))],
            [],
        )
        mesh = layout.mesh(jax.devices()[:devices])
        first = lambda key: create(task, optax.sgd(0.1), key, batch())
        placed = rules.shardings(jax.eval_shape(first, jax.random.key(1)), mesh, layout.parameters)
        state = jax.jit(first, out_shardings=placed)(meshes.random_key(1, mesh))
        table = state.params["model"]["rows"]["table"]
        assert table.addressable_shards[0].data.shape == (8 // shape[1], D)

        def loss(params, batch):
            return task.loss(params, {}, batch, jax.random.key(2), train=True)[0]

        run = constrained(jax.value_and_grad(loss), mesh, layout.activations)
        with jax.set_mesh(mesh):
            found.append(jax.device_get(jax.jit(run)(state.params, meshes.shard_batch(batch(), mesh))))
    for x, y in zip(*map(jax.tree.leaves, found), strict=True):
        assert np.abs(x - y).max() <= 1e-5 * np.abs(jnp.asarray(y)).max()
