"""A sparse dual encoder end to end: trained in microbatches, and opened again with its biases."""

import json

import jax
import numpy as np
import pytest

from configs.dual_encoder import mixture
from dual_encoder.trained import Trained
from experiments.contrastive import Experiment

TOPICS = ("iron", "silk", "corn", "salt", "wool", "coal", "rice", "gold")


def small(folder, steps):
    config = mixture.get_config(f"folder={folder / 'data'},steps={steps},batch=16,experts=4,balance=bias")
    config.tokenizer.vocab_size = 120
    config.text.update(query_length=8, document_length=8)
    config.schedule.update(microbatches=2, log_every=1, eval_every=3, save_every=3)
    auxiliary = config.task.auxiliary
    auxiliary.accumulation = "two_pass"
    auxiliary.losses.balance = dict(name="moe.balance.load_balancing")
    auxiliary.weights.balance = 0.01
    auxiliary.bias_update.rate = 0.0625
    encoder = config.task.model.tower.encoder
    encoder.embed.update(vocab_size=120, width=16)
    encoder.update(num_layers=1, unroll=1)
    for block in (encoder.block.dense, encoder.block.sparse):
        block.attention.heads = 2
    encoder.block.dense.feed_forward.width = encoder.block.sparse.feed_forward.experts.width = 16
    return config.to_dict()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data" / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": f"part {n}", "text": f"the {t} {t}"} for n, t in enumerate(TOPICS)]
    queries = [{"_id": f"q{n}", "text": f"trade of {topic}"} for n, topic in enumerate(TOPICS)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split in ("train", "dev", "test"):
        lines = "".join(f"q{n}\td{n}\t1\n" for n in range(len(TOPICS)))
        (tmp_path / "data" / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    return tmp_path


@pytest.mark.slow
def test_trains_and_is_opened_with_the_biases_that_were_kept_as_best(folder):
    config = small(folder, steps=3)
    (folder / "run").mkdir()
    state = Experiment(config, folder / "run").train()
    (bias,) = jax.tree.leaves(state.state)
    assert bias.shape == (1, 4)
    moves = np.asarray(bias) / 0.0625  # three, each up or down by one, or none
    np.testing.assert_array_equal(moves, np.round(moves))
    assert 0 < np.abs(moves).max() <= 3

    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "moe/balance" in row]
    assert len(logged) == 3
    for row in logged:
        assert row["moe/dropped"] == 0
        assert 1 <= row["moe/load_max"] <= 4
        total = row["contrastive"] + 0.01 * row["moe/balance"] + 1e-3 * row["moe/z"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)

    trained = Trained.load(folder / "run", config)
    (kept,) = jax.tree.leaves(trained.variables["balance"])
    assert trained.step in (0, 3)
    np.testing.assert_array_equal(kept, bias if trained.step == 3 else np.zeros_like(bias))
    assert "state" in trained.identity()
    vectors, _ = trained.queries(["trade of iron", "trade of silk"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
