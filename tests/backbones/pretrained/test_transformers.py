"""What we write, transformers reads, with the same outputs; needs the `bench` extra."""

import pathlib

import jax
import numpy as np
import pytest

from backbones.pretrained import folder, models

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "pretrained"
ALL = sorted(path.name for path in GOLDEN.iterdir())

pytestmark = pytest.mark.bench


def close(ours, expected, mask=None):
    ours, expected = ours.detach().numpy(), np.asarray(expected)
    if mask is not None:
        ours, expected = ours[mask.astype(bool)], expected[mask.astype(bool)]
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def inputs(name):
    torch = pytest.importorskip("torch")
    with np.load(GOLDEN / name / "expected.npz") as held:
        expected = dict(held)
    texts = {"input_ids": expected["tokens"], "attention_mask": expected["mask"]}
    return expected, {field: torch.from_numpy(array).long() for field, array in texts.items()}


@pytest.mark.parametrize("name", ALL)
def test_an_encoder(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    models.save(tmp_path, folder.read_config(GOLDEN / name), models.parameters(GOLDEN / name))
    alone = {"t5": "T5EncoderModel", "t5_v1_1": "T5EncoderModel", "mt5": "MT5EncoderModel"}
    model = getattr(transformers, alone.get(name, "AutoModel")).from_pretrained(tmp_path)
    expected, texts = inputs(name)
    close(model.eval()(**texts).last_hidden_state, expected["last"], expected["mask"])


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_language_model(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    params = models.decoder_parameters(GOLDEN / name)
    models.save_decoder(tmp_path, folder.read_config(GOLDEN / name), params)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    expected, texts = inputs(name)
    close(model.eval()(**texts).logits, expected["logits"], expected["mask"])


@pytest.mark.parametrize("name", ["t5", "t5_v1_1", "mt5"])
def test_an_encoder_and_its_decoder(name, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    params = models.encoder_decoder_parameters(GOLDEN / name)
    models.save_encoder_decoder(tmp_path, folder.read_config(GOLDEN / name), params)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    expected, texts = inputs(name)
    labels = torch.from_numpy(expected["targets"]).long()
    close(model.eval()(**texts, labels=labels).logits, expected["logits"])


@pytest.mark.parametrize(
    ("name", "head", "more"),
    [
        ("bert", "BertForMaskedLM", {}),
        ("bert", "BertForSequenceClassification", {}),
        ("roberta", "RobertaForMaskedLM", {}),
        ("distilbert", "DistilBertForMaskedLM", {}),
        ("mpnet", "MPNetForMaskedLM", {}),
        ("modernbert", "ModernBertForMaskedLM", {}),
        ("qwen3", "Qwen3ForSequenceClassification", {}),
        ("llama", "LlamaModel", {"max_shard_size": "4KB"}),
    ],
)
def test_a_checkpoint_with_a_head_or_in_shards_is_the_encoder(name, head, more, tmp_path):
    """Whose names then begin with that of the model."""
    transformers = pytest.importorskip("transformers")
    model = getattr(transformers, head).from_pretrained(GOLDEN / name)
    model.save_pretrained(tmp_path, **more)
    assert (tmp_path / "model.safetensors.index.json").exists() == bool(more)
    ours, expected = models.parameters(tmp_path), models.parameters(GOLDEN / name)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
