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

ATTENTION = {"name": "backbones.cached_attention.CachedAttention", "heads": 2}
FEED_FORWARD = {"name": "moe.feed_forward.Dense", "width": 12}
TEXT = {"name": "backbones.embedding.TokenEmbedding", "vocab_size": WORDS, "width": D}
DOCID = {**TEXT, "vocab_size": V}
BIAS = {"name": "backbones.relative.RelativeBias", "heads": 2, "num_buckets": 4, "max_distance": 4}
ENCODER = {
    "name": "backbones.encoder.TransformerEncoder",
    "num_layers": 1,
    "embed": TEXT,
    "block": {
        "name": "backbones.blocks.PreNorm",
        "attention": {"name": "backbones.attention.SelfAttention", "heads": 2},
        "feed_forward": FEED_FORWARD,
        "dropout": 0.1,
    },
}
BLOCK = {
    "name": "backbones.decoder_blocks.PreNorm",
    "attention": ATTENTION,
    "cross_attention": ATTENTION,
    "feed_forward": FEED_FORWARD,
    "dropout": 0.1,
}
DECODER = {
    "name": "backbones.decoder.TransformerDecoder",
    "num_layers": 2,
    "embed": DOCID,
    "block": BLOCK,
    "bias": {**BIAS, "bidirectional": False},
}
ALONE = {
    **DECODER,
    "embed": {"name": "generative_retrieval.decoder_only.TwoTables", "text": TEXT, "docid": DOCID},
    "block": {**BLOCK, "cross_attention": None},
    "bias": BIAS,
}
PREFIX_LM = {"name": "backbones.masks.prefix_lm"}
TOWER = {
    "name": "dual_encoder.towers.Tower",
    "encoder": ENCODER,
    "pooler": {"name": "dual_encoder.poolers.mean"},
    "normalize": False,
}
PAIR = {"name": "generative_retrieval.models.EncoderDecoder", "encoder": ENCODER, "decoder": DECODER}
MODELS = {
    "decoder alone, prefix": {
        "name": "generative_retrieval.decoder_only.DecoderOnly",
        "decoder": {**ALONE, "visible": PREFIX_LM},
    },
    "decoder alone, causal": {"name": "generative_retrieval.decoder_only.DecoderOnly", "decoder": ALONE},
    "prefix-aware": {
        "name": "generative_retrieval.pawa.PrefixAware",
        "encoder": ENCODER,
        "decoder": DECODER,
        "adaptor_block": {**BLOCK, "name": "backbones.decoder_blocks.PostNorm"},
        "adaptor_layers": 2,
    },
    "one vector a document": {
        "name": "generative_retrieval.dynamic_retriever.DynamicRetriever",
        "tower": TOWER,
        "documents": 7,
        "spare": 2,
    },
    "shared encoder": {
        "name": "generative_retrieval.joint.SharedEncoder",
        "generator": PAIR,
        "pooler": {"name": "dual_encoder.poolers.mean"},
    },
}
_LIKE_ANOTHER = ("decoder alone, causal", "shared encoder")
each_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in _LIKE_ANOTHER else name for name in MODELS]
)


@functools.cache
def built(name):
    return build(MODELS[name])


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


@functools.cache
def random_variables(name):
    """Initial parameters, each moved so that no scale is 1 and no bias 0."""
    batch = with_targets(texts(), np.ones((B, 1), np.int32))
    variables = jax.eval_shape(built(name).init, jax.random.key(0), batch)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.6, p.shape), jnp.float32), variables)


@functools.cache
def forced(name):
    """The model's logits of a batch, compiled."""
    return jax.jit(lambda batch: built(name).apply(random_variables(name), batch).logits)


def rows_of(ids_NT, batch):
    """Each text with each id, B N rows."""
    ids = np.tile(ids_NT, (B, 1))
    return with_targets({key: np.repeat(x, len(ids_NT), axis=0) for key, x in batch.items()}, ids)


@each_model
def test_a_search_as_wide_as_the_corpus_equals_teacher_forcing(name, make_ids):
    ids_NT = ids_of(name, make_ids)
    count = len(ids_NT)
    documents = trie.build(ids_NT, built(name).docid_size)

    @jax.jit
    def search(variables):
        queries = speller.of(built(name), variables, texts())
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
def test_what_is_under_the_mask_changes_nothing(name, make_ids):
    ids_NT = ids_of(name, make_ids)
    batch = rows_of(ids_NT, texts())
    other = np.where(batch["mask"], batch["tokens"], 7)
    assert (other != batch["tokens"]).any()
    shown = batch["target_mask"].astype(bool)[:, :, None]
    one, two = (np.where(shown, forced(name)(b), 0) for b in (batch, {**batch, "tokens": other}))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@each_model
def test_a_symbol_sees_only_those_before_it(name, make_ids):
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
def test_every_parameter_is_trained(name, make_ids):
    model, batch = built(name), with_targets(texts(), ids_of(name, make_ids)[:B])

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
def test_sizes_of_its_vocabularies(name):
    assert built(name).text_size == WORDS
    assert built(name).docid_size == (10 if name == "one vector a document" else V)
