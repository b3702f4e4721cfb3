"""The decoder alone: its two tables, what a mask shows of the prompt, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones.embedding import TokenEmbedding
from generative_retrieval.decoder_only import TwoTables
from training.build import build

D = 8
EMBED = dict(name="backbones.embedding.TokenEmbedding", width=D)
TABLES = dict(
    name="generative_retrieval.decoder_only.TwoTables",
    text=EMBED | dict(vocab_size=20),
    docid=EMBED | dict(vocab_size=5),
)


def spec(**decoder):
    fields = dict(
        name="backbones.decoder.TransformerDecoder",
        num_layers=2,
        embed=TABLES,
        block=dict(
            name="backbones.decoder_blocks.PreNorm",
            attention=dict(name="backbones.cached_attention.CachedAttention", heads=2),
            feed_forward=dict(name="moe.feed_forward.Dense", width=12),
        ),
    )
    return dict(name="generative_retrieval.decoder_only.DecoderOnly", decoder=fields | decoder)


def batch(tokens):
    ones = np.ones((len(tokens), 2), np.int32)
    return {"tokens": tokens, "mask": np.ones(tokens.shape, np.int32), "targets": ones, "target_mask": ones}


def test_words_and_symbols_have_tables_of_their_own():
    module = TwoTables(TokenEmbedding(3, 2), TokenEmbedding(2, 2))
    text, docid = jnp.arange(6.0).reshape(3, 2), 10 + jnp.arange(4.0).reshape(2, 2)
    params = {"params": {"text": {"table": text}, "docid": {"table": docid}}}
    found = module.apply(params, jnp.array([[0, 2, 3, 4, 5, -1]]))
    assert found[0, :4].tolist() == [[0, 1], [4, 5], [10, 11], [12, 13]]
    assert jnp.isnan(found[0, 4:]).all()


@pytest.mark.parametrize("visible", [pytest.param("causal", marks=pytest.mark.slow), "prefix_lm"])
def test_what_a_word_sees_of_the_prompt(visible):
    """With a prefix mask the first word sees the last one; with a causal mask the id alone does."""
    model = build(spec(visible=dict(name=f"backbones.masks.{visible}")))
    first = np.array([[1, 2, 3]], np.int32)

    @jax.jit
    def first_words(tokens):  # keys of the second layer at the first word's slot
        params = model.init(jax.random.key(0), batch(first))
        cache = model.apply(params, batch(tokens), 1, method="start")
        return cache.own.keys[1, :, :, 0]

    one, other = first_words(np.array([[1, 2, 3], [1, 2, 4]], np.int32))
    changed = np.abs(one - other).max()
    assert (changed > 1e-4) == (visible == "prefix_lm")


@pytest.mark.parametrize("wrong", [dict(embed=EMBED | dict(vocab_size=9)), dict(output=TABLES)])
def test_refuses_another_decoder(wrong):
    with pytest.raises(ValueError, match="allowed: TwoTables, and None"):
        build(spec(**wrong)).init(jax.random.key(0), batch(np.ones((1, 3), np.int32)))
