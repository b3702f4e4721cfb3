import json
import os
import subprocess
import sys

import jax.numpy as jnp
import pytest

from experiments.benchmarks import harness, moe_experts, moe_layer


def test_figures_and_plot(monkeypatch, tmp_path):
    monkeypatch.setattr(moe_experts, "_COPIED", 2**10)
    monkeypatch.setattr(moe_experts, "compile_given", lambda *_: moe_layer.Compiled(lambda: jnp.ones(1), 0))
    seconds = {"experts 2": 2.0, "router 2": 0.5, "experts 4": 3.0, "router 4": 0.75, "copy": 2**-20}

    def medians(runs, rounds):
        assert all(run(0) is not None for run in runs.values())
        return {name: seconds[name] for name in runs}

    monkeypatch.setattr(harness, "interleaved_medians", medians)
    made = moe_experts.measure(128, 1, experts=(2, 4), width=8)
    assert made["last_to_first"] == 1.5
    assert made["router_seconds"] == [0.5, 0.75]
    assert made["bytes_per_second"] == 2**31
    assert made["floor_seconds"] == [3 * 4 * 2 * 2 * 8 * 8 / 2**31, 3 * 4 * 4 * 2 * 8 * 8 / 2**31]
    assert "last over first 1.50" in "\n".join(moe_experts.lines(made))
    moe_experts.plot(tmp_path / "curve.png", made)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--rounds=0", "--rounds is 0"),
        ("--tokens=100", "--tokens is 100; allowed: a multiple of 128"),
        ("--plot=/no/such/folder/x.png", "no such folder: /no/such/folder"),
    ],
)
def test_wrong_arguments_are_refused(argument, message, capsys):
    with pytest.raises(SystemExit):
        moe_experts.main([argument])
    assert message in capsys.readouterr().err


@pytest.mark.bench
def test_full_size():
    # In a process of its own: the tests' simulated devices would share out the cores.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments.benchmarks.moe_experts", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["last_to_first"] <= made["bar"]
