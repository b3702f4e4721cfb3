"""A query generator's batches, its models, and what is drawn from them."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corpora import tokenizer as tokenizers
from corpora.tables import DataError, Document
from generative_retrieval import query_generator, query_sampling, speller
from generative_retrieval.query_generator import TextSettings
from generative_retrieval.query_sampling import Generator, Sampling
from training import mesh as meshes
from training.build import build

WORDS = ["gull", "tide", "wave", "salt", "ship", "rope", "sail", "sand", "crab", "reef"]
DOCUMENTS = [Document(f"d{i}", WORDS[i], " ".join(WORDS[i:])) for i in range(9)]
VOCAB, LENGTH = 120, 5


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train_wordpiece(WORDS * 3, vocab_size=VOCAB)


def spec(name, width=16):
    embed = dict(name="backbones.embedding.TokenEmbedding", vocab_size=VOCAB, width=width)
    attention = dict(name="backbones.cached_attention.CachedAttention", heads=2)
    feed_forward = dict(name="moe.feed_forward.Gated", width=width)
    encoder = dict(
        name="backbones.encoder.TransformerEncoder",
        num_layers=1,
        embed=embed,
        block=dict(
            name="backbones.blocks.PreNorm",
            attention=dict(
                name="backbones.attention.SelfAttention",
                heads=2,
                rotate=dict(name="backbones.positions.rotary"),
            ),
            feed_forward=feed_forward,
        ),
    )
    rotary = attention | dict(rotate=dict(name="backbones.positions.rotary"))
    block = dict(
        name="backbones.decoder_blocks.PreNorm",
        attention=rotary,
        cross_attention=attention,
        feed_forward=feed_forward,
    )
    decoder = dict(name="backbones.decoder.TransformerDecoder", num_layers=1, embed=embed, block=block)
    return dict(name=f"generative_retrieval.query_generator.{name}", encoder=encoder, decoder=decoder)


def some_batch(tokenizer, rows=(0, 3, 8), texts=("gull tide", "salt", "sail sand crab reef rope")):
    text = TextSettings(document_length=8, query_length=LENGTH)
    table = text.documents(tokenizer, DOCUMENTS)
    queries = text.queries(tokenizer, texts)
    make = query_generator.batches(table, queries, np.array(rows), np.arange(len(rows)), text)
    return make(np.arange(len(rows)), 0)


def test_a_query_ends_with_end_and_is_cut_to_leave_room_for_it(tokenizer):
    batch = some_batch(tokenizer)
    ids = dict(zip(WORDS, np.concatenate(tokenizer.encode(WORDS, 9)).tolist(), strict=True))
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    gull, salt, sail, sand, crab, reef = (
        ids[word] for word in ("gull", "salt", "sail", "sand", "crab", "reef")
    )
    assert batch["targets"].tolist() == [
        [gull, ids["tide"], 0, 0, 0],
        [salt, 0, 0, 0, 0],
        [sail, sand, crab, reef, 0],
    ]
    assert batch["target_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["tokens"][2, :6].tolist() == [cls, crab, sep, crab, reef, sep]


def test_a_part_is_rows_of_the_whole_and_a_row_of_none_counts_nothing(tokenizer):
    text = TextSettings(document_length=8, query_length=LENGTH)
    table, queries = text.documents(tokenizer, DOCUMENTS), text.queries(tokenizer, ["gull", "crab reef"])
    make = query_generator.batches(table, queries, np.array([0, 8]), np.array([0, 1]), text)
    whole = make(np.array([1, 0, -1]), 0)
    chex.assert_trees_all_equal(
        make(np.array([1, 0, -1]), 0, slice(1, 3)), {k: v[1:] for k, v in whole.items()}
    )
    assert not whole["mask"][2].any()
    assert not whole["target_mask"][2].any()


def test_the_pad_token_must_be_end(tokenizer, tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[PAD]\n[CLS]\n[SEP]\nsea\n")
    with pytest.raises(DataError, match=r"\[PAD\] has the id 1; a query generator needs 0"):
        TextSettings(8, 4).queries(tokenizers.load(str(tmp_path / "vocab.txt")), ["sea"])


@pytest.mark.parametrize(("field", "value"), [("document_length", 3), ("query_length", 1)])
def test_lengths_leave_room(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}; it must be at least"):
        TextSettings(**{"document_length": 8, "query_length": 4, field: value})


@pytest.fixture(scope="module", params=[pytest.param("shared_embedding", marks=pytest.mark.slow), "copying"])
def generator(request, tokenizer):
    model = build(spec(request.param))
    batch = some_batch(tokenizer)
    return model, jax.jit(model.init)(jax.random.key(0), batch), batch


@pytest.mark.slow
def test_there_is_one_table(generator):
    tables = [
        path for path, _ in jax.tree_util.tree_leaves_with_path(generator[1]) if "table" in str(path[-1])
    ]
    assert len(tables) == 1


@pytest.mark.slow
def test_a_step_at_a_time_gives_what_the_whole_gives(generator):
    model, variables, batch = generator
    whole_BTV = jax.nn.log_softmax(jax.jit(model.apply)(variables, batch).logits)
    of = speller.of(model, variables, {name: batch[name] for name in ("tokens", "mask")})
    step = jax.jit(of.step)
    logits_BV, cache = jax.jit(lambda: speller.begin(of, LENGTH, 1))()
    found = [logits_BV]
    lineage_BKT = speller.lineage(len(batch["tokens"]), LENGTH, 1)
    for depth in range(1, LENGTH):
        at = jnp.int32(depth)
        read_B1 = jnp.asarray(batch["targets"][:, depth - 1 : depth])
        logits_B1V, cache = step(read_B1, at, speller.visible(lineage_BKT, at), cache)
        found.append(logits_B1V[:, 0])
    found_BTV = jax.nn.log_softmax(jnp.stack(found, axis=1))
    shown = batch["target_mask"].astype(bool)
    difference = np.abs(found_BTV - whole_BTV)[shown].max()
    assert difference <= 1e-5 * np.abs(whole_BTV[shown]).max()


@pytest.fixture(scope="module")
def copying(tokenizer):
    """A copying model's probabilities, as a function of a batch and of g where it is fixed; and the batch."""
    model, batch = build(spec("copying")), some_batch(tokenizer)
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    apply = jax.jit(lambda *given: jnp.exp(model.apply(*given).logits))

    def probabilities(batch, gate=None):
        bias = variables["params"]["copy_gate"]["bias"] if gate is None else jnp.array([gate])
        gated = {**variables["params"], "copy_gate": variables["params"]["copy_gate"] | {"bias": bias}}
        return np.asarray(apply({"params": gated}, batch))

    return probabilities, batch


@pytest.mark.slow
def test_a_copying_model_gives_a_distribution_and_can_write_the_texts_words_alone(copying, tokenizer):
    probabilities, batch = copying
    np.testing.assert_allclose(probabilities(batch).sum(axis=-1), 1, atol=1e-5)
    p_BTV = probabilities(batch, gate=40.0)  # g = 1
    for p_TV, tokens, mask in zip(p_BTV, batch["tokens"], batch["mask"], strict=True):
        held = np.isin(np.arange(VOCAB), tokens[mask > 0])
        np.testing.assert_allclose(p_TV[:, held].sum(axis=-1), 1, atol=1e-5)
        assert p_TV[:, ~held].max() < 1e-6
    fresh_TV = probabilities(batch, gate=-40.0)[2]  # g = 0: the vocabulary alone
    assert (fresh_TV[:, ~held].sum(axis=-1) > 0.5).all()


@pytest.mark.slow
def test_a_row_of_padding_alone_is_finite(copying):
    probabilities, batch = copying
    batch = {**batch, "mask": batch["mask"] * np.array([[1], [1], [0]], np.int32)}
    p_BTV = probabilities(batch)
    assert np.isfinite(p_BTV).all()
    np.testing.assert_allclose(p_BTV[:2].sum(axis=-1), 1, atol=1e-5)


def draw(tables, seeds, keys, sampling, queries, length):
    run = lambda keys: query_sampling.sample(
        tables.speller(jnp.asarray(seeds)), keys, sampling, queries=queries, length=length
    )
    return np.asarray(jax.jit(run)(keys))


@pytest.mark.slow
def test_queries_are_drawn_from_the_models_distribution(tables):
    sampling = Sampling(temperature=0.5, top_k=2)
    # Two subwords and END, at most two of them; so many draws that frequencies lie within 5 deviations.
    model, count = tables(3, 2), 4_000
    made_KT = draw(model, [7], jax.random.split(jax.random.key(0), 1), sampling, count, 2)[0]
    paths = [(0, 0), *itertools.product((1, 2), range(3))]

    def p(path):
        found = []
        for word_of in model_probabilities(model, path, sampling):
            found.append(word_of)
        return np.prod(found)

    for path in paths:
        expected = p(path)
        seen = (made_KT == np.array(path)).all(axis=1).mean()
        assert abs(seen - expected) <= 5 * np.sqrt(expected * (1 - expected) / count) + 1e-9
    assert sum(map(p, paths)) == pytest.approx(1, abs=1e-5)


def model_probabilities(model, path, sampling):
    """Of each subword of a path, by stepping the speller along it; those behind END count 1."""
    of = model.speller(jnp.array([7]))
    logits_BV, cache = speller.begin(of, 2, 1)
    yield restricted(logits_BV[0], sampling)[path[0]]
    if path[0] == 0:
        return
    seen = speller.visible(speller.lineage(1, 2, 1), jnp.int32(1))
    logits_BKV, _ = of.step(jnp.array([[path[0]]]), jnp.int32(1), seen, cache)
    yield restricted(logits_BKV[0, 0], sampling)[path[1]]


def restricted(logits_V, sampling):
    logits = np.asarray(logits_V, np.float64) / sampling.temperature
    if sampling.top_k:
        logits[np.argsort(-logits)[sampling.top_k :]] = -np.inf
    p = np.exp(logits - logits.max())
    return p / p.sum()


@pytest.mark.slow
def test_at_temperature_0_the_likeliest_is_taken_and_end_fills_the_rest(tables):
    model = tables(5, 6)
    keys = jax.random.split(jax.random.key(0), 3)
    made = draw(model, [1, 2, 3], keys, Sampling(temperature=0), 2, 6)
    assert (made[:, 0] == made[:, 1]).all()
    ended = np.cumsum(made == 0, axis=2) > 0
    assert (made[ended] == 0).all()
    assert ended.any()


@pytest.mark.slow
def test_what_is_drawn_for_a_document_depends_on_it_alone(tokenizer):
    model = build(spec("shared_embedding"))
    variables = jax.jit(model.init)(jax.random.key(0), some_batch(tokenizer))

    def drawn(rows, batch_size=16, devices=1, queries=3):
        mesh = meshes.data_mesh(jax.devices()[:devices])
        generate = Generator(
            model, mesh, meshes.Layout(), Sampling(), queries=queries, document_length=8, query_length=3,
            seed=3, batch_size=batch_size,
        )  # fmt: skip
        part = TextSettings(8, 3).documents(tokenizer, [DOCUMENTS[row] for row in rows])
        return generate(meshes.replicate(variables, mesh), part, np.asarray(rows))

    every = list(range(len(DOCUMENTS)))
    whole = drawn(every)
    assert len(np.unique(whole.reshape(-1, 3), axis=0)) > 9  # queries differ
    np.testing.assert_array_equal(drawn(every[::-1], devices=8), whole[::-1])
    np.testing.assert_array_equal(drawn([4, 7, 8, 1], batch_size=3, queries=2), whole[[4, 7, 8, 1]][:, :2])


@pytest.mark.parametrize("field", ["queries", "batch_size"])
def test_numbers_of_a_generator_are_checked(generator, field):
    given = dict(queries=1, batch_size=1) | {field: 0}
    with pytest.raises(ValueError, match=f"{field} is 0; allowed: 1 or more"):
        Generator(
            generator[0],
            meshes.data_mesh(),
            meshes.Layout(),
            Sampling(),
            document_length=8,
            query_length=LENGTH,
            seed=0,
            **given,
        )
