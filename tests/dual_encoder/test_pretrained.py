import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from backbones.encoded import Encoded
from backbones.pretrained import models
from backbones.pretrained.folder import PretrainedError, read_config
from corpora import pretrained_tokenizer
from corpora import tokenizer as tokenizers
from corpora.tables import Document
from corpora.tokens import TextSettings
from dual_encoder import pretrained, pretrained_export
from dual_encoder.encoding import Encoder
from dual_encoder.pretrained_folder import Described, describe
from dual_encoder.pretrained_pooling import Pooling
from training.mesh import data_mesh

BERT = Path(__file__).parents[1] / "golden" / "pretrained" / "bert"
TEXTS = ["ab ba", "abba", "b", "aabb abab"]
WIDTH, LENGTH = 16, 12
MODULES = ("Transformer", "Pooling", "Dense", "Normalize")


def write(folder, *, modules=MODULES, pooling=None, settings=None, transformer=None, dense=None):
    """A folder as old releases of sentence-transformers wrote them, by hand."""
    shutil.copytree(BERT, folder, ignore=shutil.ignore_patterns("expected.npz"))
    made = tokenizers.train_wordpiece(["abba ab ba query"] * 5, vocab_size=29)
    pretrained_tokenizer.save(folder, made, max_length=LENGTH, special_tokens=True)
    put = lambda name, content: (folder / name).write_text(json.dumps(content))
    places = ["", *(f"{n}_{kind}" for n, kind in enumerate(modules) if n)]
    listed = [
        dict(idx=n, name=str(n), path=place, type=f"sentence_transformers.models.{kind}")
        for n, (kind, place) in enumerate(zip(modules, places, strict=True))
    ]
    put("modules.json", listed)
    put("sentence_bert_config.json", transformer or dict(max_seq_length=LENGTH, do_lower_case=False))
    put("config_sentence_transformers.json", settings or {})
    for place, kind in zip(places[1:], modules[1:], strict=True):
        (folder / place).mkdir()
        if kind == "Pooling":
            chosen = pooling or dict(pooling_mode_mean_tokens=True)
            put(f"{place}/config.json", dict(word_embedding_dimension=WIDTH) | chosen)
        if kind == "Dense":
            tanh = "torch.nn.modules.activation.Tanh"
            fields = dict(in_features=WIDTH, out_features=3, bias=True, activation_function=tanh)
            put(f"{place}/config.json", fields | (dense or {}))
            rng = np.random.default_rng(0)
            tensors = {"linear.weight": rng.standard_normal((3, WIDTH)), "linear.bias": np.arange(3.0)}
            save_file(
                {k: v.astype(np.float32) for k, v in tensors.items()}, folder / place / "model.safetensors"
            )
    return str(folder)


def vectors(path, texts=TEXTS, side="documents"):
    text = TextSettings(**pretrained.text(path))
    encoder = Encoder(pretrained.model(path), mesh=data_mesh(jax.devices()[:1]))
    variables = {"params": {"query": pretrained.parameters(path)}}
    words = pretrained.tokenizer(path)
    if side == "queries":
        return encoder.queries(variables, text.queries(words, texts), text.query_length)
    table = text.passages(words, [Document("", "", text) for text in texts])
    return encoder.documents(variables, table, text.document_length)


def token_vectors(path, texts):
    """What the Transformer of a folder gives, and where there is a token."""
    table = TextSettings(**pretrained.text(path)).queries(pretrained.tokenizer(path), texts)
    batch = table.rectangle(np.arange(len(texts)), LENGTH)
    encoded = models.encoder(path).apply(
        {"params": jax.tree.map(jnp.asarray, models.parameters(path))}, batch
    )
    return np.asarray(encoded.last), np.asarray(encoded.mask)


def test_the_modules_are_applied_in_turn(tmp_path):
    path = write(tmp_path / "f")
    last_NLD, mask_NL = token_vectors(path, TEXTS)
    mean_ND = (last_NLD * mask_NL[:, :, None]).sum(1) / mask_NL.sum(1)[:, None]
    weight = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)
    expected = np.tanh(mean_ND @ weight.T + np.arange(3))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(path), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("modules", "settings", "normalized"),
    [
        (MODULES, {}, True),
        (MODULES[:2], {}, True),  # the cosine, where nothing is said
        (MODULES[:2], {"similarity_fn_name": "dot"}, False),
        (("Transformer", "Pooling", "Normalize"), {"similarity_fn_name": "dot"}, True),
    ],
)
def test_vectors_are_normalized_where_the_folder_says_so(tmp_path, modules, settings, normalized):
    path = write(tmp_path / "f", modules=modules, settings=settings)
    assert pretrained.tower(path).normalize == normalized


def test_poolings_by_hand():
    last = jnp.array([[[1.0, 8.0], [3.0, 2.0], [5.0, 5.0], [9.0, 9.0]]])
    encoded = Encoded(last=last, mask=jnp.array([[True, True, True, False]]))
    modes = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    got = np.asarray(Pooling(modes)(encoded)).reshape(6, 2)
    thirds = np.array([(1 + 6 + 15) / 6, (8 + 4 + 15) / 6])
    expected = [[1, 8], [5, 8], [3, 5], np.array([9, 15]) / 3**0.5, thirds, [5, 5]]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    # Without the first position, whose weight of 1 is not given to the second.
    got = np.asarray(Pooling(modes, skip=1)(encoded)).reshape(6, 2)
    thirds = np.array([(6 + 15) / 5, (4 + 15) / 5])
    expected = [[3, 2], [5, 5], [4, 3.5], np.array([8, 7]) / 2**0.5, thirds, [5, 5]]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_prompts_are_put_before_and_left_out_of_the_pooling(tmp_path):
    settings = {"prompts": {"query": "ab {", "passage": "b "}, "default_prompt_name": None}
    path = write(
        tmp_path / "f",
        modules=MODULES[:2],
        pooling=dict(pooling_mode_mean_tokens=True, include_prompt=False),
        settings=settings,
    )
    text = pretrained.text(path)
    assert (text["query_template"], text["document_template"]) == ("ab {{{text}", "b {title} {text}")
    words = pretrained.tokenizer(path)
    skip = 1 + len(words.encode(["ab {"], 99)[0])
    last_NLD, mask_NL = token_vectors(path, TEXTS)
    mask_NL = mask_NL & (np.arange(LENGTH) >= skip)
    expected = (last_NLD * mask_NL[:, :, None]).sum(1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(path, side="queries"), expected, atol=1e-5)


def test_the_prompt_of_a_side():
    described = describe_settings(prompts={"query": "q", "corpus": "c", "x": "y"}, default_prompt="x")
    assert (described.query_prompt(), described.document_prompt()) == ("q", "c")
    assert described.query_prompt("x") == "y"
    described = describe_settings(prompts={"x": "y"}, default_prompt="x")
    assert (described.query_prompt(), described.document_prompt()) == ("y", "y")
    with pytest.raises(PretrainedError, match="there is no prompt 'z'; allowed: x"):
        described.document_prompt("z")


def describe_settings(**fields):
    return Described(BERT, None, None, **fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(modules=("Transformer", "Pooling", "Dropout")), r"modules.json: type is .*Dropout'; allowed"),
        (
            dict(modules=("Transformer", "Normalize")),
            "has Transformer, Normalize; allowed: Transformer, Pool",
        ),
        (dict(pooling=dict(pooling_mode="median")), "pooling is 'median'; allowed: cls, max"),
        (dict(pooling=dict(pooling_mode_x=True)), "pooling_mode_x is True, which is not supported"),
        (dict(settings=dict(similarity_fn_name="euclidean")), "similarity_fn_name is 'euclidean'; allowed"),
        (dict(settings=dict(truncate_dim=8)), "truncate_dim is 8; allowed"),
        (dict(settings=dict(prompts={}, default_prompt_name="x")), "default_prompt_name is 'x'"),
        (dict(transformer=dict(query_expansion={"length": 3})), "query_expansion is"),
        (
            dict(dense=dict(activation_function="mine.Act")),
            "activation_function is 'mine.Act'; allowed: 'torch",
        ),
        (dict(dense=dict(use_residual=True)), "use_residual is True; allowed: False"),
        (dict(dense=dict(out_features=4)), r"linear.weight has shape \(3, 16\); allowed: \(4, 16\)"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, message):
    with pytest.raises(PretrainedError, match=message):
        pretrained.parameters(write(tmp_path / "f", **changes))


def test_a_plain_folder_needs_a_pooling(tmp_path):
    with pytest.raises(
        PretrainedError, match=r"has no modules\.json that names a pooling; allowed: pooling=mean"
    ):
        pretrained.tower(str(BERT))
    assert pretrained.tower(str(BERT), pooling="cls").pooler.modes == ("cls",)
    assert describe(BERT).query_length == LENGTH  # its positions


@pytest.mark.parametrize("dense", [{}, dict(activation_function="torch.nn.modules.linear.Identity")])
def test_a_written_folder_gives_the_same_parts(tmp_path, dense):
    settings = {"prompts": {"query": "ab ", "document": "b "}}
    path = write(tmp_path / "f", settings=settings, dense=dense)
    text = TextSettings(**pretrained.text(path))
    again = str(tmp_path / "again")
    arguments = dict(config=read_config(path), tokenizer=pretrained.tokenizer(path), text=text)
    tower = pretrained.tower(path)
    pretrained_export.save(again, tower, pretrained.parameters(path), **arguments)
    jax.tree.map(np.testing.assert_array_equal, pretrained.parameters(again), pretrained.parameters(path))
    read = pretrained.tower(again)
    assert (read.pooler, read.normalize, read.encoder) == (tower.pooler, tower.normalize, tower.encoder)
    assert read.head.layers[1] is tower.head.layers[1]
    assert pretrained.text(again) == pretrained.text(path)
    words = pretrained.tokenizer(again), pretrained.tokenizer(path)
    assert words[0].frame == words[1].frame
    assert words[0].encode(TEXTS, 9) == words[1].encode(TEXTS, 9)
    with pytest.raises(PretrainedError, match="again is there already; allowed: a new folder"):
        pretrained_export.save(again, tower, pretrained.parameters(path), **arguments)


def test_what_a_folder_cannot_say_is_refused(tmp_path):
    path = write(tmp_path / "f", modules=MODULES[:2])
    config, words = read_config(path), pretrained.tokenizer(path)
    tower, params = pretrained.tower(path), pretrained.parameters(path)
    for fields, message in (
        (
            dict(document_template="{title}: {text}"),
            r"text.document_template is .*allowed .* a prompt before",
        ),
        (dict(query_template="{text} ab"), "text.query_template is '{text} ab'"),
    ):
        settings = TextSettings(LENGTH, LENGTH, True, **{"document_template": "{title} {text}", **fields})
        with pytest.raises(PretrainedError, match=message):
            pretrained_export.save(
                tmp_path / "o", tower, params, config=config, tokenizer=words, text=settings
            )
    settings = TextSettings(LENGTH, LENGTH, True, document_template="{title} {text}")
    other = tower.clone(pooler=lambda encoded: encoded.last[:, 0])
    with pytest.raises(PretrainedError, match=r"the pooler is .*; allowed: cls, max, mean"):
        pretrained_export.save(tmp_path / "o", other, params, config=config, tokenizer=words, text=settings)
    other = tower.clone(unpooled=(3, 0))
    with pytest.raises(PretrainedError, match=r"unpooled is \(3, 0\); allowed: \(0, 0\)"):
        pretrained_export.save(tmp_path / "o", other, params, config=config, tokenizer=words, text=settings)
    assert not (tmp_path / "o").exists()


@pytest.mark.bench
@pytest.mark.parametrize("include_prompt", [True, False])
def test_sentence_transformers_gives_the_same_vectors(tmp_path, include_prompt):
    peer = pytest.importorskip("sentence_transformers")
    pooling = dict(pooling_mode=["lasttoken", "mean"], include_prompt=include_prompt)
    settings = {"prompts": {"query": "ab ", "document": "b "}}
    path = write(
        tmp_path / "f", settings=settings, pooling=pooling, modules=("Transformer", "Pooling", "Normalize")
    )
    text = TextSettings(**pretrained.text(path))
    again = str(tmp_path / "again")
    tower, params = pretrained.model(path).query, pretrained.parameters(path)
    pretrained_export.save(
        again, tower, params, config=read_config(path), tokenizer=pretrained.tokenizer(path), text=text
    )
    for folder in (path, again):
        model = peer.SentenceTransformer(folder, device="cpu")
        np.testing.assert_allclose(model.encode_query(TEXTS), vectors(path, side="queries"), atol=1e-5)
        np.testing.assert_allclose(model.encode_document(TEXTS), vectors(path), atol=1e-5)
