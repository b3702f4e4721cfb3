"""Negatives that are mined anew while a run trains: what is told of them, and a kill about that moment."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.dual_encoder import recipe
from experiments import run_dirs
from training import metrics
from training.checkpoints import LATEST, read_best_params, steps

ROOT = Path(__file__).parents[2]
WORDS = ("iron", "silk", "corn", "salt", "wool", "coal", "rice", "gold", "jute", "clay", "lead", "tea")
# Trains, and kills itself at the first call of a method, before or after it does its work.
TRAIN = """
import json, os, signal, sys
import training.checkpoints, training.tables
from experiments import run_dirs
_, config, run_dir, owner, method = sys.argv
owner = {"Tables": training.tables.Tables, "Checkpoints": training.checkpoints.Checkpoints}[owner]
work = getattr(owner, method)
def then_die(self, *args, **kwargs):
    work(self, *args, **kwargs)
    if method == "save":
        if int(args[0].step) < 4:
            return
        self.wait()
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, method, then_die)
run_dirs.start(run_dir, json.load(open(config))).train()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data" / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": f"part {n}", "text": f"the {w} {w}"} for n, w in enumerate(WORDS)]
    queries = [{"_id": f"q{n}", "text": f"trade of {word}"} for n, word in enumerate(WORDS)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split in ("train", "dev", "test"):
        lines = "".join(f"q{n}\td{n}\t1\n" for n in range(len(WORDS)))
        (tmp_path / "data" / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    return tmp_path


def config(folder):
    """Refreshed after steps 3 and 6; checkpoints after 2, 4 and 6."""
    made = recipe.get_config(f"folder={folder / 'data'},recipe=refreshed,steps=7,batch=8")
    made.tokenizer.vocab_size = 120
    for side in ("query", "document"):
        made.task.model[side].encoder.embed.update(vocab_size=120, width=16)
    made.batch.negatives.count = made.batch.refresh.count = 5
    made.batch.refresh_every = 3
    made.mesh.axes.data = 1
    made.schedule.update(log_every=1, eval_every=7, save_every=2)
    with made.unlocked():
        made.batch.teacher = dict(name="dual_encoder.scorers.bm25")
        made.task.objective = dict(
            name="dual_encoder.objectives.distillation.distilled", contrastive_weight=0.1
        )
    return made.to_dict()


def end_of(run_dir):
    """All that two runs can be told apart by, but for times."""
    rows = [metrics.without_time(row) for row in metrics.read(run_dir)]
    tables = {file.name: np.load(file) for file in sorted((run_dir / "tables").glob("*.npy"))}
    best = read_best_params(run_dir / "checkpoints")
    return rows, tables, best, json.loads((run_dir / "negatives.json").read_text())


def same(one, other):
    assert one[0] == other[0]
    assert one[3] == other[3]
    assert one[1].keys() == other[1].keys()
    for a, b in zip(jax.tree.leaves(one[1:3]), jax.tree.leaves(other[1:3]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_refreshing_leaves_out_is_told_and_the_teacher_scores_it_anew(folder, capsys):
    experiment = run_dirs.start(folder / "run", config(folder))
    experiment.train()
    printed = capsys.readouterr().out
    _, tables, _, counts = end_of(folder / "run")
    assert list(counts) == ["0", "3", "6"]
    for step, count in counts.items():
        rows = tables["negatives.npy" if step == "0" else f"negatives-{step}.npy"] if step != "3" else None
        if rows is not None:
            assert count["kept"] == (rows >= 0).sum()
            assert not (rows == experiment.pairs.positives[:, :1]).any()
        assert f"negatives after step {step}: {count['candidates']} candidates of 12 queries" in printed
    # Of a query's 6 nearest its one positive goes, or where it is not among them the sixth.
    assert counts["6"]["candidates"] == 12 * 6
    assert counts["6"]["removed"]["known positives"] <= 12
    assert f"known positives: removed {counts['6']['removed']['known positives']}" in printed
    for name in ("", "-6"):
        expected = experiment.scored(tables[f"negatives{name}.npy"])
        np.testing.assert_array_equal(tables[f"teacher_negatives{name}.npy"], expected)
    assert (tables["negatives-6.npy"] != tables["negatives.npy"]).any()


@pytest.mark.slow
def test_a_kill_between_refresh_and_checkpoint_or_after_changes_nothing(folder):
    (folder / "config.json").write_text(json.dumps(config(folder)))
    run_dirs.start(folder / "whole", config(folder)).train()
    # One device, and otherwise compiled as here, or it would round otherwise.
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    # After the new tables of step 3 are written, with the checkpoint of step 2; and with that of step 4.
    for where, kept in ((("Tables", "replace"), 2), (("Checkpoints", "save"), 4)):
        run_dir = folder / where[0]
        child = subprocess.run(
            [sys.executable, "-c", TRAIN, str(folder / "config.json"), str(run_dir), *where],
            cwd=ROOT, capture_output=True, text=True, timeout=600,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)},
        )  # fmt: skip
        assert child.returncode == -signal.SIGKILL, child.stderr
        assert max(steps(run_dir / "checkpoints" / LATEST)) == kept
        assert (run_dir / "tables" / "negatives-3.npy").exists()
        run_dirs.start(run_dir, config(folder)).train()
        same(end_of(folder / "whole"), end_of(run_dir))
