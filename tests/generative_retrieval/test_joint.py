"""One encoder for two losses: each by itself, its batches, and dense search with it beside spelling."""

import jax
import numpy as np
import pytest

from corpora.tokens import TokenTable
from dual_encoder.encoding import Encoder
from eval import fusion, runs
from generative_retrieval import indexing, joint
from generative_retrieval.indexing import Examples
from index import exact
from training import mesh as meshes
from training.build import SpecError, build

B, T, D = 3, 2, 8


def spec(make_pair, head=None, spelling=None, **fields):
    model = dict(
        name="generative_retrieval.joint.SharedEncoder",
        generator=make_pair(),
        pooler=dict(name="dual_encoder.poolers.mean"),
        head=head,
    )
    spelling = dict(name="generative_retrieval.task.SequenceToSequence", model=model) | (spelling or {})
    return dict(name="generative_retrieval.joint.Joint", spelling=spelling, **fields)


def batch(length=5):
    rng = np.random.default_rng(0)
    mask = np.arange(length)[None] < np.array([[5], [2], [3]])
    text = lambda: rng.integers(0, 20, (B, length), dtype=np.int32)
    return {
        "tokens": text(),
        "mask": mask,
        "targets": rng.integers(1, 5, (B, T), dtype=np.int32),
        "target_mask": np.ones((B, T), np.int32),
        "documents": np.array([7, 4, 7], np.int32),  # one document twice
        "document_tokens": text(),
        "document_mask": mask[::-1],
        "document_segments": np.zeros((B, length), np.int32),
    }


@pytest.mark.slow
def test_the_loss_is_the_sum_of_both(make_pair):
    task = build(spec(make_pair, head=dict(name="flax.linen.Dense", features=4), weight=0.5))

    @jax.jit
    def run(key):
        params, state = task.init(key, batch())
        loss, (_, metrics) = task.loss(params, state, batch(), key, train=False)
        alone, _ = task.spelling.loss(params, state, batch(), key, train=False)
        variables = task.variables(params, state)
        query_BD = task.model.apply(variables, batch(), method="encode_query")
        document_BD = task.model.apply(variables, joint.documents(batch()), method="encode_document")
        return loss, metrics, alone, query_BD, document_BD

    loss, metrics, alone, query_BD, document_BD = jax.device_get(run(jax.random.key(0)))
    assert query_BD.shape == (B, 4)
    where = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], bool)  # the same document is no negative
    scores = np.where(where, query_BD @ document_BD.T / 0.05, -np.inf)
    contrastive = np.mean(np.log(np.exp(scores).sum(axis=1)) - np.diagonal(scores))
    np.testing.assert_allclose(metrics["spelling"], alone, rtol=1e-6)
    np.testing.assert_allclose(metrics["contrastive"], contrastive, rtol=1e-5)
    np.testing.assert_allclose(loss, alone + 0.5 * contrastive, rtol=1e-5)


@pytest.mark.slow
def test_both_losses_train_the_encoder(make_pair):
    consistency = dict(name="generative_retrieval.consistency.Consistency")
    task = build(spec(make_pair, spelling=dict(consistency=consistency)))
    params, state = task.init(jax.random.key(0), batch())

    @jax.jit
    def gradients(params):
        loss = lambda params: task.loss(params, state, batch(), jax.random.key(1), train=True)
        metric = lambda params, name: loss(params)[1][1][name]
        return [jax.grad(metric)(params, name) for name in ("cross_entropy", "contrastive", "consistency")]

    for gradient in gradients(params):
        of_words = gradient["model"]["generator"]["encoder"]["embed"]["table"]
        assert np.isfinite(of_words).all()
        assert np.abs(of_words).max() > 0


def table(lengths, first=0):
    held = first + np.arange(sum(lengths), dtype=np.int32)
    return TokenTable(held, np.zeros(len(held), np.uint8), np.cumsum([0, *lengths]), pad_id=99)


def test_batches_have_the_document_of_each_text():
    queries = Examples(table([2, 1, 3]), np.array([4, 9, 4], np.int32))
    documents = Examples(table([3, 5], first=50), np.array([4, 9], np.int32))
    symbols_NT = np.arange(1, 11, dtype=np.int32)[:, None]
    make = indexing.batches([queries], symbols_NT, length=8, seed=0)
    make = joint.with_documents(make, documents, length=4)
    whole = make(np.array([2, 1]), 0)
    assert whole["documents"].tolist() == [4, 9]
    assert [row[row < 99].tolist() for row in whole["document_tokens"]] == [[50, 51, 52], [53, 54, 55, 56]]
    assert whole["document_mask"].sum(axis=1).tolist() == [3, 4]
    part = make(np.array([2, 1]), 0, slice(0, 1))  # of the shape of the whole
    assert all((part[name] == x[:1]).all() for name, x in whole.items())


@pytest.mark.slow
def test_dense_search_and_fusion_with_the_shared_encoder(make_pair):
    task = build(spec(make_pair))
    encoder = Encoder(task.model, mesh=meshes.data_mesh(jax.devices()[:2]))
    variables = encoder.place(task.variables(*jax.jit(task.init)(jax.random.key(0), batch())))
    texts = table([3, 1, 2], first=5)
    index = exact.build(encoder.documents(variables, texts, 8))
    scores_Qk, rows_Qk = exact.search(index, encoder.queries(variables, texts, 8), 3)
    assert np.asarray(rows_Qk)[:, 0].tolist() == [0, 1, 2]  # a text is closest to itself: one tower
    np.testing.assert_allclose(scores_Qk[:, 0], 1, rtol=1e-5)
    ids = ["a", "b", "c"]
    dense = runs.from_rows(["q", "r", "s"], ids, scores_Qk, rows_Qk)
    spelled = {"q": {"b": -1.0, "a": -2.0}, "r": {"a": -1.0, "b": -3.0}, "s": {"c": -1.0}}
    fused = fusion.interpolate(spelled, dense, 0.4)
    assert fused["q"]["a"] == pytest.approx(0.6)  # the best of the dense run, the last of the other
    assert max(fused["s"], key=fused["s"].get) == "c"


def test_refuses_another_model_and_weights(make_pair):
    pair = spec(make_pair, spelling=dict(model=make_pair()))
    with pytest.raises(SpecError, match=r"spelling.model is EncoderDecoder; allowed: .*SharedEncoder"):
        build(pair)
    for field in ("temperature", "weight"):
        with pytest.raises(SpecError, match=f"{field} is 0; it must be positive"):
            build(spec(make_pair, **{field: 0}))
