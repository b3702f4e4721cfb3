"""Programs of several processes on this machine: how they work together, and how they end."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from corpora.tokens import TokenTable
from dual_encoder.encoding import Encoder
from dual_encoder.task import SMALLEST_BATCH, Contrastive
from experiments import launch
from training.build import build
from training.mesh import Layout

ROOT = Path(__file__).parents[2]

PROGRAM = """
import os, sys, time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import cli
from training import distributed
from training.lock import exclusive

mode, folder = sys.argv.pop(1), Path(sys.argv.pop(1))

def main():
    distributed.start()
    number = jax.process_index()
    print(f"{jax.process_count()} processes, {len(jax.devices())} devices, {len(jax.local_devices())} here")
    print(f"a warning of {number}", file=sys.stderr)
    (folder / f"pid-{number}").write_text(str(os.getpid()))
    globals()[mode](number)

def work(number):
    with distributed.leader_first("preparing"):
        with distributed.leader_first("preparing a part of it"):
            made = not (folder / "made").exists()
            if made:
                time.sleep(0.5)
                (folder / "made").write_text("whole")
        assert (folder / "made").read_text() == "whole"
    assert made == (number == 0)
    with exclusive(folder):
        pass

def fail_first(number):
    with distributed.leader_first("preparing the data"):
        if number == 0:
            raise cli.UsageError("the data is no data")

def lock(number):
    with exclusive(folder):
        print("locked")
        time.sleep(60)

def die(which, number):
    step = jax.jit(lambda x: x.sum())
    for n in range(1000):
        total = multihost_utils.process_allgather(np.float32(n))
        if n == 3 and number == which:
            os.kill(os.getpid(), 9)

def die_0(number): die(0, number)
def die_1(number): die(1, number)
def die_3(number): die(3, number)

def die_while_others_wait(number):
    if number == 1:
        os.kill(os.getpid(), 9)
    distributed.wait("the dead")

def bug(number):
    if number == 1:
        raise ZeroDivisionError("a bug")
    multihost_utils.process_allgather(np.float32(0))

def sleep(number):
    print("asleep")
    time.sleep(60)

cli.Command("A toy.").run(main)
"""


def start(program, *arguments, processes, devices=1, heartbeat=30):
    flags = [f"--processes={processes}", f"--devices={devices}", f"--heartbeat={heartbeat}"]
    command = [sys.executable, "-m", "experiments.launch", *flags, "--", "python", "-c", program, *arguments]
    return subprocess.Popen(
        [str(a) for a in command], cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    """Returns the status, and standard output and error without what jax's compiled code logs."""
    out, err = process.communicate(timeout=90)
    noise = re.compile(r"(\[\d\] )?(\[Gloo\].*|[IWEF]\d{4} .*|\*\*\* Check failure.*|\s+@ .*|RPC: .*|)")
    kept = lambda text: [line for line in text.splitlines() if not noise.fullmatch(line)]
    return process.returncode, kept(out), kept(err)


def run(*arguments, **options):
    return finish(start(PROGRAM, *arguments, **options))


def check_work(tmp_path, processes, devices):
    status, out, err = run("work", tmp_path, processes=processes, devices=devices)
    assert status == 0, err
    assert out == [f"{processes} processes, {processes * devices} devices, {devices} here"]
    warnings = ["a warning of 0", *(f"[{n}] a warning of {n}" for n in range(1, processes))]
    assert sorted(err) == sorted(warnings)


def test_processes_find_each_other_and_wait_for_the_leader(tmp_path):
    check_work(tmp_path, 2, 2)


@pytest.mark.slow
def test_four_processes(tmp_path):
    check_work(tmp_path, 4, 1)


def test_where_the_leader_fails_the_others_end_too(tmp_path):
    status, _, err = run("fail_first", tmp_path, processes=2)
    assert status == 2
    assert "error: the data is no data" in err
    assert "[1] error: process 1 ends since process 0 failed at preparing the data; see there" in err
    assert re.fullmatch(r"process 0 \(pid \d+\) ended with status 2", err[-1])


@pytest.mark.parametrize(
    ("mode", "processes", "dead"),
    [
        ("die_1", 2, 1),
        pytest.param("die_0", 2, 0, marks=pytest.mark.slow),
        pytest.param("die_0", 4, 0, marks=pytest.mark.slow),
        pytest.param("die_3", 4, 3, marks=pytest.mark.slow),
        pytest.param("die_while_others_wait", 2, 1, marks=pytest.mark.slow),
    ],
)
def test_the_dead_process_is_named_and_all_end(tmp_path, mode, processes, dead):
    started = time.monotonic()
    status, _, err = run(mode, tmp_path, processes=processes, heartbeat=5)
    assert time.monotonic() - started < 60
    assert status == 128 + signal.SIGKILL
    (named,) = [line for line in err if "pid" in line]
    assert named == f"process {dead} (pid {(tmp_path / f'pid-{dead}').read_text()}) was killed by signal 9"
    for number in range(processes):
        assert not Path("/proc", (tmp_path / f"pid-{number}").read_text()).exists()


@pytest.mark.slow
def test_an_unexpected_error_of_one_process_ends_all(tmp_path):
    status, _, err = run("bug", tmp_path, processes=2)
    assert status == 1
    assert "[1] ZeroDivisionError: a bug" in err
    assert any(re.fullmatch(r"process 1 \(pid \d+\) ended with status 1", line) for line in err)


@pytest.mark.slow
def test_where_the_lock_is_taken_all_processes_fail(tmp_path):
    first = start(PROGRAM, "lock", tmp_path, processes=1)
    assert any(line == "locked\n" for line in first.stdout)
    status, _, err = run("lock", tmp_path, processes=2)
    first.kill()
    first.communicate(timeout=60)
    assert status == 2
    assert f"error: another process is at work in {tmp_path}; wait for it, or stop it" in err
    assert f"[1] error: process 1 ends since process 0 failed at locking {tmp_path}; see there" in err


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on(tmp_path, signum):
    process = start(PROGRAM, "sleep", tmp_path, processes=2)
    assert any(line == "asleep\n" for line in process.stdout)
    process.send_signal(signum)
    status, _, err = finish(process)
    assert status == 128 + signum
    assert not any("pid" in line for line in err)  # as they should


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=2"], "0 PROGRAM given; at least 1 is needed (see --help)"),
        (["--", "/nosuch/program"], "PROGRAM: /nosuch/program: No such file or directory"),
        (["--processes=0", "--", "true"], "--processes=0: 0 is not a positive integer"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["launch", *arguments])
    with pytest.raises(SystemExit) as stop:
        launch.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


TOWER = {
    "name": "dual_encoder.towers.Tower",
    "pooler": {"name": "dual_encoder.poolers.mean"},
    "encoder": {
        "name": "backbones.encoder.TransformerEncoder",
        "num_layers": 1,
        "embed": {"name": "backbones.embedding.TokenEmbedding", "vocab_size": 32, "width": 8},
        "block": {
            "name": "backbones.blocks.PreNorm",
            "attention": {"name": "backbones.attention.SelfAttention", "heads": 2},
            "feed_forward": {"name": "moe.feed_forward.Dense", "width": 16},
        },
    },
}
SIDES = {"name": "dual_encoder.towers.separate", "query": TOWER, "document": TOWER}
ENCODE = """
import pickle, sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dual_encoder.encoding import Encoder
from training import distributed, mesh as meshes
from training.build import build

distributed.start()
folder = Path(sys.argv[1])
spec, variables, table = pickle.loads((folder / "given").read_bytes())
model = build(spec)

# Every parameter whose first axis divides lies over both processes.
layout = meshes.Layout({"data": 1, "fsdp": 2, "tensor": 2}, (), (("residual", ("batch", None, "tensor")),))
mesh = layout.mesh()
spec = lambda x: PartitionSpec("fsdp") if x.ndim and x.shape[0] % 2 == 0 else PartitionSpec()
sharded = meshes.put(variables, jax.tree.map(lambda x: NamedSharding(mesh, spec(x)), variables))
assert not all(x.is_fully_addressable or x.is_fully_replicated for x in jax.tree.leaves(sharded))
encoder = Encoder(model, batch_size=4, mesh=mesh, activations=layout.activations)
for name, given in (("whole", variables), ("sharded", sharded)):
    placed = encoder.place(given)
    for x, y in zip(jax.tree.leaves(given), jax.tree.leaves(placed), strict=True):
        assert y.sharding.mesh == mesh and (name == "whole" or y is x)
    np.save(folder / f"{name}-{jax.process_index()}", encoder.documents(placed, table, 16))
# By default a process's own devices: the others need not know of it.
if jax.process_index() == 1:
    encoder = Encoder(model, batch_size=4)
    np.save(folder / "alone-1", encoder.documents(encoder.place(variables), table, 16))
"""


@pytest.mark.slow
def test_vectors_of_two_processes_are_those_of_one(tmp_path):
    task = Contrastive(build(SIDES))
    init = jax.jit(lambda key: {"params": task.init(key, SMALLEST_BATCH)[0]["model"]})
    variables = jax.device_get(init(jax.random.key(0)))
    lengths = [3, 17, 1, 0, 16, 5, 2, 9, 12]
    tokens = np.random.default_rng(0).integers(5, 30, sum(lengths)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    table = TokenTable(tokens, np.zeros(len(tokens), np.uint8), offsets, pad_id=0)
    (tmp_path / "given").write_bytes(pickle.dumps((SIDES, variables, table)))
    status, _, err = finish(start(ENCODE, tmp_path, processes=2, devices=2))
    assert status == 0, err
    encoder = Encoder(task.model, batch_size=4, mesh=Layout().mesh(jax.devices()[:1]))
    expected = encoder.documents(encoder.place(variables), table, 16)
    files = sorted(tmp_path.glob("*.npy"))
    assert [file.stem for file in files] == ["alone-1", "sharded-0", "sharded-1", "whole-0", "whole-1"]
    for file in files:
        difference = np.abs(np.load(file) - expected).max()
        assert difference <= 1e-5 * np.abs(expected).max(), file.name
