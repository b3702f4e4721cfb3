"""A training process is killed at random moments, again and again, and ends as though it had not been."""

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.dual_encoder import python_functions
from training import metrics
from training.checkpoints import LATEST, read_best_params, steps

ROOT = Path(__file__).parents[2]
PACKAGES = ("json", "email", "logging", "unittest")
STEPS = 60
TRAIN = """
import json, sys
from experiments import run_dirs
run_dirs.start(sys.argv[2], json.load(open(sys.argv[1]))).train()
"""


def config(root):
    """All that a run carries along: refreshed negatives, a moving average, microbatches, evaluations."""
    made = python_functions.get_config(f"root={root},steps={STEPS}")
    with made.unlocked():
        made.tokenizer.vocab_size = 600
        for side in ("query", "document"):
            encoder = made.task.model[side].encoder
            encoder.embed.vocab_size, encoder.embed.width, encoder.token_dropout = 600, 16, 0.1
        made.batch = dict(
            batch_size=32,
            negatives_per_query=1,
            negatives=dict(name="dual_encoder.negatives.bm25", count=5, k1=0.9, b=0.4),
            refresh=dict(name="dual_encoder.negatives.nearest", count=5),
            refresh_every=19,  # after steps 19, 38, 57: three, two and one after a checkpoint
        )
        made.schedule.update(
            log_every=3, eval_every=10, save_every=4, microbatches=2, average_decay=0.9, keep_checkpoints=2
        )
    return made.to_dict()


def start(folder, workdir):
    environment = {
        **os.environ, "RETRIEVAX_CACHE": str(folder / "cache"), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(folder / "config.json"), str(workdir)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def last_step(workdir):
    rows = metrics.read(workdir)
    return rows[-1]["step"] if rows else -1


def kill_after(process, workdir, steps_on, delay):
    """Kills the process some steps further on than where it is; False if it came to its end before."""
    while last_step(workdir) < 0 and process.poll() is None:
        time.sleep(0.005)
    target = last_step(workdir) + steps_on
    while last_step(workdir) < target and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    alive = process.poll() is None
    process.kill()
    process.communicate(timeout=60)
    return alive


def restored(workdir):
    """Every array of the newest checkpoint, and what was saved beside it, without times."""
    import orbax.checkpoint as ocp

    latest = workdir / "checkpoints" / LATEST
    path = latest / str(max(steps(latest)))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(path, ocp.args.Composite(state=ocp.args.StandardRestore()))
    position = json.loads((path / "position.json").read_text())
    position.pop("seconds")
    return jax.device_get(found["state"]), position


def same(one, other):
    one, other = jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(other)
    assert [path for path, _ in one] == [path for path, _ in other]
    for (path, a), (_, b) in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a small collection and a run that was never stopped."""
    folder = tmp_path_factory.mktemp("kill")
    for package in PACKAGES:
        shutil.copytree(Path(sysconfig.get_path("stdlib")) / package, folder / "code" / package)
    (folder / "config.json").write_text(json.dumps(config(folder / "code")))
    finish(start(folder, folder / "whole"))
    return folder


@pytest.mark.parametrize(
    ("kills", "seed"), [(5, 0), pytest.param(20, 1, marks=pytest.mark.slow)], ids=["5", "20"]
)
def test_killed_at_random_a_run_ends_as_one_that_was_not(whole, kills, seed):
    rng = random.Random(seed)
    workdir, killed, most = whole / f"killed-{kills}", 0, max(6, STEPS // kills)
    while killed < kills:
        process = start(whole, workdir)
        killed += kill_after(process, workdir, rng.randint(0, most), rng.uniform(0, 0.1))
        if last_step(workdir) >= STEPS or killed == kills:
            finish(start(whole, workdir))
            assert_same_run(whole / "whole", workdir)
            shutil.rmtree(workdir)  # more kills are for another run


def assert_same_run(one, other):
    rows = [[metrics.without_time(row) for row in metrics.read(run)] for run in (one, other)]
    assert rows[0] == rows[1]
    assert rows[0][-1]["step"] == STEPS
    assert {"loss", "grad_norm", "padding", "accuracy"} <= rows[0][-2].keys()
    same(restored(one), restored(other))
    best = [json.loads((run / "checkpoints" / "best.json").read_text()) for run in (one, other)]
    assert best[0] == best[1]
    same(*(read_best_params(run / "checkpoints") for run in (one, other)))
    (_, position), (_, of_other) = restored(one), restored(other)
    assert position["tables"] == of_other["tables"]
    assert position["tables"]["negatives"]["file"] == "tables/negatives-57.npy"
    same(*(np.load(run / "tables" / "negatives-57.npy") for run in (one, other)))
