import gzip
import json

import jax
import numpy as np
import pytest

from corpora.tokens import TokenTable
from dual_encoder.encoding import Encoder, best_variables
from dual_encoder.task import SMALLEST_BATCH, Contrastive
from training.build import build
from training.checkpoints import CheckpointError, Checkpoints
from training.mesh import data_mesh
from training.task import TrainState

TOWER = {
    "name": "dual_encoder.towers.Tower",
    "pooler": {"name": "dual_encoder.poolers.mean"},
    "encoder": {
        "name": "backbones.encoder.TransformerEncoder",
        "num_layers": 1,
        "embed": {"name": "backbones.embedding.TokenEmbedding", "vocab_size": 30, "width": 8},
        "block": {
            "name": "backbones.blocks.PreNorm",
            "attention": {"name": "backbones.attention.SelfAttention", "heads": 2},
            "feed_forward": {"name": "moe.feed_forward.Dense", "width": 16},
        },
    },
}


@pytest.fixture(scope="module")
def task():
    return Contrastive(build({"name": "dual_encoder.towers.separate", "query": TOWER, "document": TOWER}))


@pytest.fixture(scope="module")
def params(task):
    return task.init(jax.random.key(0), SMALLEST_BATCH)[0]


def table(lengths, seed=0):
    tokens = np.random.default_rng(seed).integers(5, 30, sum(lengths)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TokenTable(tokens, np.zeros(len(tokens), np.uint8), offsets, pad_id=0)


@pytest.mark.parametrize("devices", [1, 8])
def test_batches_and_lengths_change_nothing(task, params, devices):
    texts = table([3, 70, 1, 0, 16, 17, 40, 5, 64, 2, 9])
    encoder = Encoder(task.model, batch_size=3, mesh=data_mesh(jax.devices()[:devices]))
    vectors = encoder.documents({"params": params["model"]}, texts, 64)
    assert vectors.shape == (11, 8)
    for row in range(len(texts)):
        one = texts.rectangle(np.array([row]), 64)
        expected = task.model.apply({"params": params["model"]}, one, method="encode_document")[0]
        np.testing.assert_allclose(vectors[row], expected, atol=1e-5)
    np.testing.assert_array_equal(vectors[3], 0.0)


def test_the_sides_have_their_own_towers(task, params):
    encoder = Encoder(task.model)
    texts = table([3, 5])
    variables = {"params": params["model"]}
    difference = encoder.queries(variables, texts, 8) - encoder.documents(variables, texts, 8)
    assert np.abs(difference).max() > 0.01


def test_progress_is_shown_where_it_has_a_title(task, params, monkeypatch):
    lines = []
    monkeypatch.setattr("training.progress._SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr("builtins.print", lambda text, **kwargs: lines.append(text))
    variables = {"params": params["model"]}
    Encoder(task.model, batch_size=8).documents(variables, table([3] * 20), 8, title="encoding")
    assert [line.split(" (")[0] for line in lines] == [f"encoding: {n} of 20 texts" for n in (8, 16, 20)]
    for line, padding in zip(
        lines, ("62.5%", "62.5%", "68.8%"), strict=True
    ):  # 3 of 8, and 4 rows of nothing
        assert f" texts/s, padding {padding}, " in line
        assert line.endswith(" left")


def test_progress_goes_by_the_work_and_not_by_texts(task, params, monkeypatch):
    """Two texts of 32 positions and four of 16: each half of the work."""
    monkeypatch.setattr("dual_encoder.encoding._POSITIONS_CPU", 64)
    done = []
    encoder = Encoder(task.model, mesh=data_mesh(jax.devices()[:1]))
    encoder.documents({"params": params["model"]}, table([32, 32, 3, 3, 3, 3]), 64, report=done.append)
    assert done == [3, 6]


def test_padding_by_hand(task, params, monkeypatch):
    """Ten texts of 17 to 26 tokens: longest first, 64 positions hold two of 32."""
    monkeypatch.setattr("dual_encoder.encoding._POSITIONS_CPU", 64)
    batches = []
    encoder = Encoder(task.model, mesh=data_mesh(jax.devices()[:1]))
    encoder.documents({"params": params["model"]}, table([*range(17, 26), 3]), 64, report=batches.append)
    assert batches == [2, 4, 6, 8, 10]
    assert 1 - encoder.tokens / encoder.computed == pytest.approx(1 - (sum(range(17, 26)) + 3) / (5 * 64))
    encoder.documents({"params": params["model"]}, table([32, 32]), 64)  # all calls count
    assert 1 - encoder.tokens / encoder.computed == pytest.approx(
        1 - (sum(range(17, 26)) + 3 + 64) / (6 * 64)
    )


@pytest.mark.parametrize("name", ["fairytaleqa", "medquad"])
def test_little_of_real_collections_is_padding(collections, task, name):
    """By words, which are fewer than subwords; the compiled function is not called."""
    with gzip.open(collections / name / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        words = [len(json.loads(line)["text"].split()) for line in lines]
    encoder = Encoder(task.model, mesh=data_mesh(jax.devices()[:1]))
    encoder._document.encode = lambda variables, batch: np.zeros((len(batch["tokens"]), 1), np.float32)
    encoder.documents(None, table(words), 256)
    assert 0 < 1 - encoder.tokens / encoder.computed < 0.10


def test_a_batch_of_nothing_is_refused(task):
    with pytest.raises(ValueError, match="batch_size is 0"):
        Encoder(task.model, batch_size=0)


def test_best_parameters_come_back(task, params, tmp_path):
    with pytest.raises(CheckpointError, match="no best checkpoint in"):
        best_variables(tmp_path, task)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save_best(TrainState(np.int32(7), params, {}, ()), 0.5)
    checkpoints.close()
    step, restored = best_variables(tmp_path, task)
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, restored, {"params": params["model"]})
    other = Contrastive(build({"name": "dual_encoder.towers.tied", "tower": TOWER}))
    with pytest.raises(CheckpointError, match="cannot be restored"):
        best_variables(tmp_path, other)
