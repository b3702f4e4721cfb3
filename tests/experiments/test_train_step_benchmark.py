import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks import harness, train_step
from training.build import build


def test_check_allows_a_ten_thousandth():
    assert train_step.check([3.0, 2.0], [3.0, 2.00005]) == pytest.approx(5e-5)
    for losses in ([3.0, 2.0002], [3.0, float("nan")]):
        with pytest.raises(harness.BenchmarkError, match="losses differ by more than 1e-4"):
            train_step.check([3.0, 2.0], losses)


@pytest.mark.slow
def test_our_step_learns_the_batch():
    batch = train_step.random_batch(vocabulary=50, batch=8, query_length=4, document_length=6)
    task = build(train_step.task_spec(layers=2, width=8, heads=2, vocabulary=50))
    params, _ = task.init(np.array([0, 1], np.uint32), batch)
    step = train_step.Ours(task, params, batch)
    losses = [step(number) for number in range(5)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--batch=0"], "--batch is 0"), (["--heads=3"], "--heads is 3")]
)
def test_wrong_sizes_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        train_step.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.bench
def test_full_size_agrees_with_the_peer():
    # In a process of its own: the tests' simulated devices would share out the cores.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments.benchmarks.train_step", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["name"] == "train_step"
    assert (made["layers"], made["width"], made["heads"], made["batch"]) == (4, 256, 4, 128)
    assert (made["query_length"], made["document_length"]) == (32, 128)
    assert (made["better"], made["unit"]) == ("higher", "examples/s")
    assert made["loss_difference"] <= 1e-4
    assert made["ratio"] == pytest.approx(made["ours"] / made["peer"])
    assert made["peer"] == max(rate for name, rate in made["rates"].items() if name != "retrievax")
