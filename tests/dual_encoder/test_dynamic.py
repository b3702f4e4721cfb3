"""Dynamic negatives: an exact search inside jit, LambdaRank's loss by hand, and documents that stay
frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dual_encoder.derived import OWN, Sizes
from dual_encoder.dynamic import _NO_DOCUMENT, Dynamic, pairwise, search
from dual_encoder.task import Contrastive
from eval import on_device
from index import exact
from training import mesh as meshes
from training import rules
from training.activations import constrained
from training.build import build
from training.step import make_step
from training.task import begin

TOWER = {
    "name": "dual_encoder.towers.Tower",
    "encoder": {
        "name": "backbones.bag.BagOfSubwords",
        "embed": {"name": "backbones.embedding.TokenEmbedding", "vocab_size": 30, "width": 8},
    },
    "pooler": {"name": "dual_encoder.poolers.mean"},
}
SEPARATE = {"name": "dual_encoder.towers.separate", "query": TOWER, "document": TOWER}


def task(model=SEPARATE, **fields):
    return Dynamic(Contrastive(build(model), temperature=0.1), **fields)


def batch(rows=8, documents=13):
    rng = np.random.default_rng(0)
    arrays = {"document_rows": rng.integers(0, documents, (rows, 1))}
    arrays["positives"] = np.concatenate([arrays["document_rows"], rng.integers(-1, 13, (rows, 1))], axis=1)
    for side, shape in (("query", (rows, 4)), ("document", (rows, 1, 5))):
        arrays[f"{side}_tokens"] = rng.integers(5, 30, shape)
        arrays[f"{side}_mask"] = np.ones(shape)
        arrays[f"{side}_segments"] = np.zeros(shape)
    return {name: x.astype(np.int32) for name, x in arrays.items()}


def corpus(documents=13, repeated=()):
    """Vectors of passages, and whose they are: of `repeated` documents there are two."""
    document_R = np.sort([*range(documents), *repeated]).astype(np.int32)
    return np.random.default_rng(1).normal(size=(len(document_R), 8)).astype(np.float32), document_R


def begun(of, arrays, vectors_RD, document_R, parts=1):
    of = of.sized(Sizes(len(document_R), parts, 0))
    params, state = of.init(jax.random.key(0), arrays)
    return of, params, of.begin(params, state, lambda variables: (vectors_RD, document_R))


@pytest.mark.parametrize(
    ("devices", "passages", "k"),
    [
        (1, 37, 5),
        (8, 37, 37),
        *(pytest.param(8, *sizes, marks=pytest.mark.slow) for sizes in [(9, 4), (800, 100)]),
    ],
)
def test_search_inside_jit_finds_what_exact_search_does(devices, passages, k):
    rng = np.random.default_rng(passages)
    vectors = rng.integers(-2, 3, (passages, 4)).astype(np.float32)  # with many ties
    queries = rng.integers(-2, 3, (16, 4)).astype(np.float32)
    _, expected = exact.search(exact.build(vectors), queries, k)
    mesh = meshes.data_mesh(jax.devices()[:devices])
    more = -passages % devices
    documents = np.pad(np.arange(passages, dtype=np.int32), (0, more), constant_values=_NO_DOCUMENT)
    vectors = np.pad(vectors, ((0, more), (0, 0)))
    placed = meshes.put((vectors, documents, queries), meshes.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        found = jax.jit(lambda *arrays: search(*arrays, k))(*placed)
    np.testing.assert_array_equal(found, expected)


def by_loops(query_BD, vectors_RD, document_R, positives_BP, k, cut, temperature):
    """The paper's loss of one query after the other."""
    losses, first = [], []
    for query, positives in zip(query_BD, positives_BP, strict=True):
        positives = [p for p in positives if p >= 0]
        scores = vectors_RD @ query
        ranking = list(np.argsort(-scores, kind="stable")[:k])
        relevant = [document_R[row] in positives for row in ranking]
        first.append(1 / (relevant.index(True) + 1) if True in relevant[:10] else 0.0)
        if not any(relevant):
            ranking += [int(np.argmax(document_R == p)) for p in positives]
            relevant += [True] * len(positives)
        gain = [1 / rank if rank <= cut else 0.0 for rank in range(1, len(ranking) + 1)]
        terms = [
            abs(gain[i] - gain[j]) * np.log1p(np.exp((scores[ranking[j]] - scores[ranking[i]]) / temperature))
            for i in range(len(ranking))
            for j in range(len(ranking))
            if relevant[i] and not relevant[j]
        ]
        losses.append(np.mean(terms) if terms else 0.0)
    return np.mean(losses), np.mean(first)


@pytest.mark.parametrize(("k", "cut"), [(4, 3), pytest.param(15, 200, marks=pytest.mark.slow)])
def test_loss_equals_a_loop_over_queries_and_pairs(k, cut):
    arrays = batch()
    vectors, documents = corpus(repeated=(2, 7))
    of, params, state = begun(task(negatives=k, cut=cut), arrays, vectors, documents)
    loss, (_, metrics) = jax.jit(of.loss, static_argnames="train")(
        params, state, arrays, jax.random.key(0), train=True
    )
    encode = lambda texts: of.model.apply(of.variables(params, state), texts, method="encode_query")
    queries = np.asarray(encode({name: arrays[f"query_{name}"] for name in ("tokens", "mask", "segments")}))
    expected, mrr = by_loops(queries, vectors, documents, arrays["positives"], k, cut, 0.1)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["corpus/mrr@10"]) == pytest.approx(mrr)


def test_the_loss_of_one_pair_by_hand():
    # Rank 3 is relevant. Against rank 1: |1 - 1/3| log(1 + e^(2 - 1)); rank 2: |1/2 - 1/3| log(1 + e^0.5).
    scores = jnp.array([[2.0, 1.5, 1.0, 9.0]])
    relevant = jnp.array([[False, False, True, False]])
    there = jnp.array([[True, True, True, False]])
    expected = (2 / 3 * np.log1p(np.exp(1.0)) + 1 / 6 * np.log1p(np.exp(0.5))) / 2
    assert float(pairwise(scores, relevant, there, 10)) == pytest.approx(expected, rel=1e-6)
    # Behind the cut nothing is gained: 1/3 counts as 0.
    expected = (np.log1p(np.exp(1.0)) + 1 / 2 * np.log1p(np.exp(0.5))) / 2
    assert float(pairwise(scores, relevant, there, 2)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_a_step_changes_the_query_tower_alone_whatever_the_optimizer_and_the_mesh(devices):
    arrays = batch()
    mesh = meshes.data_mesh(jax.devices()[:devices])
    of, params, state = begun(task(negatives=6), arrays, *corpus(), parts=devices)
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    before = begin(optimizer, params, state)
    placed = meshes.put(before, rules.shardings(before, mesh, (), of_state=of.state_rules))
    assert len({str(s.index) for s in placed.state[OWN]["vectors"].addressable_shards}) == devices
    step = constrained(make_step(of, optimizer, mesh=mesh), mesh, ())
    with jax.set_mesh(mesh):
        after, metrics = jax.jit(step)(placed, meshes.shard_batch(arrays, mesh), jax.random.key(0))
    model = jax.tree.map(lambda a, b: bool((a == b).all()), before.params["model"], after.params["model"])
    assert not any(jax.tree.leaves(model["query"]["encoder"]["embed"]))
    assert all(jax.tree.leaves(model["document"]))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before.state, after.state)
    assert all(jax.tree.leaves(same))
    if devices > 1:  # the same as on one
        alone, _ = jax.jit(make_step(of, optimizer))(before, arrays, jax.random.key(0))
        for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(alone.params), strict=True):
            assert np.max(np.abs(a - b)) <= 1e-5 * np.max(np.abs(b))
        assert metrics["corpus/found"] > 0


def test_towers_that_share_parameters_are_refused_and_so_are_bad_numbers():
    tied = task({"name": "dual_encoder.towers.tied", "tower": TOWER})
    with pytest.raises(ValueError, match=r"share query/encoder/embed/table.*allowed: .*separate"):
        tied.init(jax.random.key(0), batch())
    with pytest.raises(ValueError, match="negatives is 0; it must be at least 1"):
        task(negatives=0)
    with pytest.raises(ValueError, match="dynamic: base has chunks 2"):
        Dynamic(Contrastive(build(SEPARATE), chunks=2))
    with pytest.raises(ValueError, match="dynamic: base has measures mrr; allowed: none"):
        Dynamic(Contrastive(build(SEPARATE), measures={"mrr": on_device.mrr}))


def test_a_best_checkpoint_holds_no_vectors():
    of, _, state = begun(task(), batch(), *corpus())
    assert set(state) == {OWN}
    assert of.kept(state) == {}
