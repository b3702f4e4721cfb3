"""Every model that spells docids, from a config: its search against teacher forcing, padding, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generative_retrieval import beam, exhaustive, speller, trie
from generative_retrieval.task import log_likelihood
from training.build import build

WORDS, V, D, B, S, T = 20, 5, 8, 2, 6, 4

NAMES = (
    "decoder alone, prefix",
    "decoder alone, causal",
    "prefix-aware",
    "one vector a document",
    "shared encoder",
)
_LIKE_ANOTHER = ("decoder alone, causal", "shared encoder")
each_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in _LIKE_ANOTHER else name for name in NAMES]
)


@pytest.fixture(scope="module")
def built(make_pair):
    """The models by name."""
    pair = make_pair(WORDS, V, D, decoder_layers=2, bias=dict(num_buckets=4, max_distance=4))
    encoder, decoder, mean = pair["encoder"], pair["decoder"], dict(name="dual_encoder.poolers.mean")
    block, of = decoder["block"], "generative_retrieval"
    tables = dict(name=f"{of}.decoder_only.TwoTables", text=encoder["embed"], docid=decoder["embed"])
    alone = decoder | dict(embed=tables, block=block | dict(cross_attention=None), bias=encoder["bias"])
    prefix = alone | dict(visible=dict(name="backbones.masks.prefix_lm"))
    adaptor = dict(adaptor_block=block | dict(name="backbones.decoder_blocks.PostNorm"), adaptor_layers=2)
    tower = dict(name="dual_encoder.towers.Tower", encoder=encoder, pooler=mean, normalize=False)
    specs = (
        dict(name=f"{of}.decoder_only.DecoderOnly", decoder=prefix),
        dict(name=f"{of}.decoder_only.DecoderOnly", decoder=alone),
        pair | adaptor | dict(name=f"{of}.pawa.PrefixAware"),
        dict(name=f"{of}.dynamic_retriever.DynamicRetriever", tower=tower, documents=7, spare=2),
        dict(name=f"{of}.joint.SharedEncoder", generator=pair, pooler=mean),
    )
    return {name: build(spec) for name, spec in zip(NAMES, specs, strict=True)}


def ids_of(name, make_ids):
    if name == "one vector a document":
        return np.arange(1, 8, dtype=np.int32)[:, None]
    return make_ids(np.random.default_rng(3), 20, V, T)


def texts():
    mask = np.arange(S)[None] < np.array([[S], [2]])
    tokens = np.random.default_rng(0).integers(0, WORDS, (B, S), dtype=np.int32)
    return {"tokens": tokens, "mask": mask}


def with_targets(batch, ids_BT):
    return {**batch, **exhaustive.targets(ids_BT)}


@pytest.fixture(scope="module")
def random_variables(built):
    """The function from a name to initial parameters, each moved so that no scale is 1 and no bias 0."""

    @functools.cache
    def of(name):
        batch = with_targets(texts(), np.ones((B, 1), np.int32))
        variables = jax.eval_shape(built[name].init, jax.random.key(0), batch)
        rng = np.random.default_rng(1)
        return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.6, p.shape), jnp.float32), variables)

    return of


@pytest.fixture(scope="module")
def forced(built, random_variables):
    """The function from a name to the model's logits of a batch, compiled."""

    @functools.cache
    def of(name):
        return jax.jit(lambda batch: built[name].apply(random_variables(name), batch).logits)

    return of


def rows_of(ids_NT, batch):
    """Each text with each id, B N rows."""
    ids = np.tile(ids_NT, (B, 1))
    return with_targets({key: np.repeat(x, len(ids_NT), axis=0) for key, x in batch.items()}, ids)


@pytest.mark.slow
@each_model
def test_a_search_as_wide_as_the_corpus_equals_teacher_forcing(
    name, make_ids, built, random_variables, forced
):
    ids_NT = ids_of(name, make_ids)
    count = len(ids_NT)
    documents = trie.build(ids_NT, built[name].docid_size)

    @jax.jit
    def search(variables):
        queries = speller.of(built[name], variables, texts())
        return beam.search(queries, documents, beams=count, results=count)

    found = search(random_variables(name))
    batch = rows_of(ids_NT, texts())
    scores_BN = np.asarray(log_likelihood(forced(name)(batch), batch)).reshape(B, count)
    order_BN = np.argsort(-scores_BN, axis=1, kind="stable")
    assert (np.asarray(found.documents_Bn) == order_BN).all()
    best_BN = np.take_along_axis(scores_BN, order_BN, axis=1)
    np.testing.assert_allclose(found.scores_Bn, best_BN, rtol=1e-5, atol=1e-6)
    assert np.ptp(scores_BN, axis=1).min() > 0.1
    assert np.abs(scores_BN[0] - scores_BN[1]).max() > 0.01  # the texts are read


@each_model
def test_what_is_under_the_mask_changes_nothing(name, make_ids, forced):
    ids_NT = ids_of(name, make_ids)
    batch = rows_of(ids_NT, texts())
    other = np.where(batch["mask"], batch["tokens"], 7)
    assert (other != batch["tokens"]).any()
    shown = batch["target_mask"].astype(bool)[:, :, None]
    one, two = (np.where(shown, forced(name)(b), 0) for b in (batch, {**batch, "tokens": other}))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@each_model
def test_a_symbol_sees_only_those_before_it(name, make_ids, forced):
    ids_NT = ids_of(name, make_ids)
    batch = rows_of(np.full_like(ids_NT, 1), texts())
    other = batch["targets"].copy()
    other[:, -2:] = 2  # of which the last one is read by nobody
    one, two = (np.asarray(forced(name)(b)) for b in (batch, {**batch, "targets": other}))
    np.testing.assert_allclose(one[:, :-1], two[:, :-1], rtol=1e-5, atol=1e-6)
    if ids_NT.shape[1] > 1:
        assert np.abs(one[:, -1] - two[:, -1]).max() > 1e-3


@pytest.mark.slow
@each_model
def test_every_parameter_is_trained(name, make_ids, built, random_variables):
    model, batch = built[name], with_targets(texts(), ids_of(name, make_ids)[:B])

    @jax.jit
    @jax.grad
    def gradient(variables):
        logits = model.apply(variables, batch, train=True, rngs={"dropout": jax.random.key(2)}).logits
        return jnp.sum(jax.nn.log_softmax(logits)[:, :, 1])

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(random_variables(name))):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(leaf).all(), where
        # The adaptor looks at one vector alone, so how much it looks at it is no question.
        idle = "adaptor" in where and ("cross_attention/query" in where or "cross_attention/key" in where)
        assert (np.abs(leaf).max() > 0) != idle, where


@each_model
def test_sizes_of_its_vocabularies(name, built):
    assert built[name].text_size == WORDS
    assert built[name].docid_size == (10 if name == "one vector a document" else V)
