import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks import encode_shape, harness


def test_check_allows_a_ten_thousandth():
    vectors_ND = np.eye(2, dtype=np.float32)
    encode_shape.check(vectors_ND, vectors_ND + 5e-5, "peer")
    for peer_ND in (vectors_ND + 2e-4, np.full((2, 2), np.nan)):
        with pytest.raises(harness.BenchmarkError, match="the vectors of peer differ"):
            encode_shape.check(vectors_ND, peer_ND, "peer")


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--layers=0"], "--layers is 0"), (["--heads=5"], "--heads is 5")]
)
def test_wrong_sizes_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        encode_shape.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.bench
def test_full_size_agrees_with_the_peer():
    # In a process of its own: the tests' simulated devices would share out the cores.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments.benchmarks.encode_shape", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["name"] == "encode_shape"
    assert (made["layers"], made["width"], made["heads"], made["hidden"]) == (6, 384, 12, 1_536)
    assert (made["documents"], made["length"]) == (64, 256)
    assert (made["better"], made["unit"]) == ("higher", "documents/s")
    assert made["ratio"] == pytest.approx(made["ours"] / made["peer"])
    assert made["peer"] == max(rate for name, rate in made["rates"].items() if name != "retrievax")
