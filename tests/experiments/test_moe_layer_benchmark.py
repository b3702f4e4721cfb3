import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.benchmarks import harness, moe_layer
from moe.one_hot import OneHot

TINY = moe_layer.Shape(tokens=128, width=8, hidden=4, experts=4, choices=2)


def test_figures_are_of_the_times_they_say(monkeypatch):
    """Nothing is compiled. A sparse layer needs 300 bytes, a dense 200; a plain product takes a second."""
    stub = lambda temporaries: moe_layer.Compiled(lambda: (np.ones(1),), temporaries)
    monkeypatch.setattr(
        moe_layer, "compile_layer", lambda layer, _: stub(300 if hasattr(layer, "router") else 200)
    )
    monkeypatch.setattr(moe_layer, "compile_given", lambda shape, routing, inputs: stub(400))
    times = {"dense": 8.0, "dropless": 9.0, "sorted": 3.0, "one_hot": 21.0, "given": 10.0}

    def medians(runs, rounds):
        return {name: times.get(name, 1.0 if name.startswith("plain") else 2.0) for name in runs}

    monkeypatch.setattr(harness, "interleaved_medians", medians)
    made = moe_layer.measure(1, TINY, TINY)
    assert made["ratio"] == 9 / 8
    assert made["ratio_given"] == made["skewed"] == 10 / 8
    assert made["vs_one_hot"] == 7
    assert made["rate"] == {"dense": 6 / 8, "dense_skewed": 6 / 8, "grouped": 6 / 8}
    assert made["gflops"] == pytest.approx(12 * 128 * 2 * 8 * 4 / 6e9)
    assert made["temporaries"] == 1.5
    assert "ratio 1.12" in "\n".join(moe_layer.lines(made))


@pytest.mark.slow
def test_a_layer_and_its_experts_alone_give_value_and_all_gradients():
    inputs = moe_layer.draw(TINY)
    layer = moe_layer.compile_layer(moe_layer.sparse(TINY, OneHot()), inputs)
    y_BLD, (dparams, dx_BLD), sums = layer.run()
    assert y_BLD.shape == dx_BLD.shape == (1, 128, 8)
    assert np.abs(dparams["router"]["score"]["kernel"]).max() > 0
    assert np.abs(dparams["experts"]["out"]).max() > 0
    assert sums["count"].sum() == 256
    assert layer.temporaries > 0
    y_GSD, (_, dx_GSD, dweight_GR) = moe_layer.compile_given(TINY, moe_layer.even_routing(TINY), inputs).run()
    assert y_GSD.shape == dx_GSD.shape == (1, 128, 8)
    assert dweight_GR.shape == (1, 256)


def test_a_token_draws_different_experts_and_the_first_are_drawn_most():
    shape = moe_layer.Shape(tokens=4096, width=1, hidden=1, experts=8, choices=2)
    for routing, first, last in (
        (moe_layer.even_routing(shape), 0.25, 0.25),
        # 1 / H_8 = 0.37 at first, and more where others were drawn before.
        (moe_layer.skewed_routing(shape), 0.61, 0.105),
    ):
        expert_TK = np.asarray(routing.expert).reshape(-1, 2)
        assert (expert_TK[:, 0] != expert_TK[:, 1]).all()
        loads = np.bincount(expert_TK.ravel(), minlength=8) / 4096
        assert loads[0] == pytest.approx(first, abs=0.03)
        assert loads[7] == pytest.approx(last, abs=0.02)


def test_layers_that_differ_are_not_timed():
    moe_layer.check((np.ones(3),), (np.ones(3) + 1e-6,))
    with pytest.raises(harness.BenchmarkError, match="differ"):
        moe_layer.check((np.ones(3),), (np.array([1.0, 1.0, 1.1]),))


def test_the_large_case_parts_forward_and_backward(monkeypatch):
    """Two plain products forward at 3 s, four backward at 1 s; grouped ones at 4 s and at 5 s."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    times = {"plain_y": 3.0, "plain_d": 1.0, "grouped_y": 4.0, "grouped_b": 5.0}
    kind = lambda name: name.split("_")[0] + "_" + name.split("_")[2][0]
    monkeypatch.setattr(
        harness, "interleaved_medians", lambda runs, **_: {name: times[kind(name)] for name in runs}
    )
    made = moe_layer.measure_large(TINY, 1)
    assert made["forward"] == 6 / 8
    assert made["backward"] == 4 / 10
    assert made["tflops"] == pytest.approx(12 * 128 * 2 * 8 * 4 / 10e12)
    assert "0.75, backward 0.40" in "\n".join(moe_layer.lines(made))


def test_the_large_case_needs_a_gpu():
    if jax.default_backend() == "gpu":
        pytest.skip("there is one")
    with pytest.raises(harness.BenchmarkError, match="needs a GPU"):
        moe_layer.measure_large(TINY, 1)


def test_wrong_rounds_are_refused(capsys):
    with pytest.raises(SystemExit):
        moe_layer.main(["--rounds=0"])
    assert "--rounds is 0" in capsys.readouterr().err


@pytest.mark.bench
def test_full_size():
    # In a process of its own: the tests' simulated devices would share out the cores.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments.benchmarks.moe_layer", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    made = json.loads(done.stdout.splitlines()[-1])
    for name, bar in made["bars"]["at most"].items():
        assert made[name] <= bar
    assert made["vs_one_hot"] >= made["bars"]["at least"]["vs_one_hot"]
    assert made["rate"]["dense"] >= made["bars"]["at least"]["dense_rate"]
