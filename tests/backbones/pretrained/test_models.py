"""Published architectures equal their reference implementation on tiny random weights; see
golden/make_pretrained.py."""

import functools
import pathlib

import jax
import numpy as np
import pytest
from flax import traverse_util

from backbones.pretrained import folder, models
from backbones.pretrained.folder import PretrainedError
from generative_retrieval import pretrained as generative
from training.build import build

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "pretrained"
SLOW = pytest.mark.slow


def some(quick, slow):
    """All of the names, of which the slow ones are marked so."""
    return [*quick, *(pytest.param(name, marks=SLOW) for name in slow)]


ALL = sorted(path.name for path in GOLDEN.iterdir())
QUICK_ENCODERS = ("bert", "mpnet", "modernbert")
KINDS = ("bert", "distilbert", "modernbert", "mpnet", "qwen3", "t5")
# Each runs once or a few times, so that compiling is what takes time.
QUICK = {"xla_backend_optimization_level": 0}


@functools.cache
def golden(name):
    """What the reference implementation computed."""
    with np.load(GOLDEN / name / "expected.npz") as held:
        return dict(held)


def batch(name):
    """Inputs, with segments as our own batches have them: a title, and the first tokens of a text."""
    expected = golden(name)
    segments = np.arange(expected["tokens"].shape[1], dtype=np.int32) % 3
    return {
        "tokens": expected["tokens"],
        "mask": expected["mask"],
        "segments": np.broadcast_to(segments, expected["tokens"].shape),
    }


@functools.cache
def runner(name, **options):
    """The encoder as a compiled function of its parameters."""
    encoder = models.encoder(GOLDEN / name, return_layers=True, **options)
    run = jax.jit(lambda params: encoder.apply({"params": params}, batch(name)), compiler_options=QUICK)
    return encoder, run


def assert_equal(ours, expected, mask=None):
    ours, expected = np.asarray(ours), np.asarray(expected)
    if mask is not None:
        ours, expected = ours[mask.astype(bool)], expected[mask.astype(bool)]
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("name", some(QUICK_ENCODERS, sorted(set(ALL) - set(QUICK_ENCODERS))))
def test_hidden_states_are_those_of_the_reference(name):
    expected = golden(name)
    encoded = runner(name)[1](models.parameters(GOLDEN / name))
    assert_equal(encoded.last, expected["last"], expected["mask"])
    for ours, theirs in zip(encoded.layers[:-1], expected["layers"], strict=True):
        assert_equal(ours, theirs, expected["mask"])


@pytest.mark.parametrize("name", some(["qwen3"], ["llama", "mistral", "qwen2"]))
def test_a_decoder_that_sees_all_of_a_text(name):
    expected = golden(name)
    encoded = runner(name, causal=False)[1](models.parameters(GOLDEN / name))
    assert_equal(encoded.last, expected["bidirectional"], expected["mask"])


@pytest.mark.parametrize("name", some(["llama"], ["qwen2"]))
def test_logits_of_a_language_model(name):
    expected = golden(name)
    decoder, params = models.decoder(GOLDEN / name), models.decoder_parameters(GOLDEN / name)
    run = jax.jit(lambda params: decoder.apply({"params": params}, batch(name)), compiler_options=QUICK)
    assert_equal(run(params).logits, expected["logits"], expected["mask"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_a_decoder_with_a_cache_is_the_decoder(name, tmp_path):
    """With shared heads of keys, a width of its own and a window."""
    config = folder.read_config(GOLDEN / name) | {"tie_word_embeddings": True}
    models.save(tmp_path / "tied", config, models.parameters(GOLDEN / name))
    decoder, params = models.decoder(tmp_path / "tied"), models.decoder_parameters(tmp_path / "tied")
    expected, inputs = golden(name), batch(name)

    def in_two_calls(params):
        variables = {"params": params}
        cache = decoder.apply(variables, *inputs["tokens"].shape, method="start")
        found = []
        for some in (slice(0, 5), slice(5, None)):
            part = {field: array[:, some] for field, array in inputs.items()}
            decoded, cache = decoder.apply(variables, part, cache, method="step")
            found.append(decoded.last)
        return jax.numpy.concatenate(found, axis=1)

    last = jax.jit(in_two_calls, compiler_options=QUICK)(params)
    assert_equal(last, expected["last"], expected["mask"])


@pytest.mark.parametrize("name", some(["t5"], ["t5_v1_1", "mt5"]))
def test_logits_of_an_encoder_and_its_decoder(name):
    expected = golden(name)
    model = build(dict(name="generative_retrieval.pretrained.encoder_decoder", path=GOLDEN / name))
    params = models.encoder_decoder_parameters(GOLDEN / name)
    inputs = batch(name) | {
        "targets": expected["targets"],
        "target_mask": np.ones_like(expected["targets"]),
    }
    run = jax.jit(lambda params: model.apply({"params": params}, inputs), compiler_options=QUICK)
    assert_equal(run(params).logits, expected["logits"])
    assert shapes(jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]) == shapes(params)


@pytest.mark.parametrize("name", some(KINDS, sorted(set(ALL) - set(KINDS))))
def test_the_parameters_are_those_of_a_new_model(name):
    """So that what is read can be trained, sharded by the same rules and saved as any other."""
    encoder = models.encoder(GOLDEN / name)
    fresh = jax.eval_shape(encoder.init, jax.random.key(0), batch(name))["params"]
    assert shapes(models.parameters(GOLDEN / name)) == shapes(fresh)


@pytest.mark.parametrize("name", ALL)
def test_what_is_written_is_what_was_read(name, tmp_path):
    params = models.parameters(GOLDEN / name)
    models.save(tmp_path, folder.read_config(GOLDEN / name), params)
    before, after = folder.open_folder(GOLDEN / name).tensors, folder.open_folder(tmp_path).tensors
    for tensor in after:
        theirs = next(full for full in before if full in (tensor, f"model.{tensor}"))
        np.testing.assert_array_equal(before[theirs], after[tensor])
    jax.tree.map(np.testing.assert_array_equal, models.parameters(tmp_path), params)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("llama", "decoder"),
        ("qwen2", "decoder"),
        *((name, "encoder_decoder") for name in ("t5", "t5_v1_1", "mt5")),
    ],
)
def test_what_is_written_with_an_output_table_is_what_was_read(name, form, tmp_path):
    """All of the file's tensors; those that are scaled, but for the last bit."""
    params = getattr(models, f"{form}_parameters")(GOLDEN / name)
    getattr(models, f"save_{form}")(tmp_path, folder.read_config(GOLDEN / name), params)
    before, after = folder.open_folder(GOLDEN / name).tensors, folder.open_folder(tmp_path).tensors
    assert set(before) == set(after)
    for tensor in before:
        np.testing.assert_allclose(before[tensor], after[tensor], rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("name", some(["bert"], ["mpnet", "modernbert", "t5", "llama"]))
def test_every_parameter_counts(name):
    """A changed parameter changes the output: none is read and then left aside."""
    run = runner(name)[1]
    params = models.parameters(GOLDEN / name)
    before = np.asarray(run(params).last)
    for path, leaf in traverse_util.flatten_dict(params).items():
        if path[-2:] == ("key", "bias"):
            continue  # it moves all scores of a query alike
        changed = traverse_util.flatten_dict(params) | {path: leaf * -2 + 0.1}
        assert not np.array_equal(before, run(traverse_util.unflatten_dict(changed)).last), path


@pytest.mark.slow
def test_the_segments_of_a_batch_are_types_only_where_they_are_asked_for():
    """So a published encoder of single texts sees what it was trained on, and a pair can be marked."""
    inputs = batch("bert") | {"segments": np.broadcast_to(np.arange(9, dtype=np.int32) >= 4, (3, 9)) * 1}
    params = models.parameters(GOLDEN / "bert")

    def last(params, **asked):
        encoder = models.encoder(GOLDEN / "bert", **asked)
        run = jax.jit(lambda params: encoder.apply({"params": params}, inputs), compiler_options=QUICK)
        return run(params).last

    plain, pair = last(params), last(params, segments=True)
    assert_equal(plain, golden("bert")["last"], inputs["mask"])
    assert np.abs(pair - plain).max() > 0.01
    table = params["position"]["first"]["second"]["table"]
    params["position"]["first"]["second"]["table"] = table[[0, 0]]
    assert_equal(last(params, segments=True), plain, inputs["mask"])


def test_dropout_is_that_of_the_config_or_the_one_that_is_asked_for():
    encoder = models.encoder(GOLDEN / "bert")
    assert (encoder.dropout, encoder.block.dropout, encoder.block.attention.dropout) == (0.1, 0.1, 0.1)
    encoder = models.encoder(GOLDEN / "bert", dropout=0.0)
    assert (encoder.dropout, encoder.block.dropout, encoder.block.attention.dropout) == (0.0, 0.0, 0.0)


def test_a_config_names_the_encoder():
    encoder = build(
        dict(name="backbones.pretrained.models.encoder", path=str(GOLDEN / "bert"), dtype="bfloat16")
    )
    encoded = jax.eval_shape(encoder.apply, {"params": models.parameters(GOLDEN / "bert")}, batch("bert"))
    assert (encoded.last.shape, encoded.last.dtype) == ((3, 9, 16), "bfloat16")


def test_forms_that_an_architecture_does_not_have_are_refused():
    with pytest.raises(PretrainedError, match=r"model_type is 'bert' in its config.json; allowed: a decoder"):
        models.encoder(GOLDEN / "bert", causal=True)
    with pytest.raises(PretrainedError, match=r"is 'llama' .* allowed: one with token types"):
        models.encoder(GOLDEN / "llama", segments=True)
    with pytest.raises(PretrainedError, match=r"is 't5' .* allowed: 'llama', 'mistral', 'qwen2', 'qwen3'"):
        models.decoder(GOLDEN / "t5")
    with pytest.raises(PretrainedError, match=r"is 'bert' .* allowed: 't5', 'mt5'"):
        generative.encoder_decoder(GOLDEN / "bert")
