import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks import harness, quantizers


def test_a_row_has_the_means_over_seeds_and_ratios():
    row = quantizers.compare("k-means", lambda seed: 10.0 + seed, "peer", lambda seed: 20.0)
    assert (row["quantizer"], row["peer_name"]) == ("k-means", "peer")
    assert (row["ours"], row["peer"], row["ratio"]) == (11.0, 20.0, 0.55)
    assert row["time_ratio"] == pytest.approx(row["seconds"] / row["peer_seconds"])


def test_the_error_of_a_peer_is_the_mean_squared_distance():
    class Halves:
        def train(self, vectors_ND):
            self.trained = True

        def compute_codes(self, vectors_ND):
            assert self.trained
            return vectors_ND

        def decode(self, codes_ND):
            return codes_ND / 2

    vectors_ND = np.array([[2.0, 4.0], [0.0, 6.0]], np.float32)
    assert quantizers.peer_error(Halves(), vectors_ND) == (1 + 4 + 0 + 9) / 2


def test_vectors_of_a_file(tmp_path):
    np.save(tmp_path / "good.npy", np.eye(3))
    assert quantizers.read(tmp_path / "good.npy").dtype == np.float32
    np.save(tmp_path / "bad.npy", np.arange(3))
    with pytest.raises(harness.BenchmarkError, match="holds no floating-point array"):
        quantizers.read(tmp_path / "bad.npy")
    with pytest.raises(harness.BenchmarkError, match="cannot be read"):
        quantizers.read(tmp_path / "none.npy")


def test_the_mixture_is_the_same_each_time():
    vectors_ND = quantizers.mixture(100, 6)
    assert (vectors_ND.shape, vectors_ND.dtype) == ((100, 6), np.float32)
    np.testing.assert_array_equal(vectors_ND, quantizers.mixture(100, 6))


@pytest.mark.bench
def test_no_more_is_left_than_by_the_peers():
    # In a process of its own: the tests' simulated devices would share out the cores.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments.benchmarks.quantizers", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["name"] == "quantizers"
    rows = {row["quantizer"]: row for row in made["rows"]}
    assert list(rows) == ["k-means", "product", "residual, beam 1", "residual, beam 5"]
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert row["ratio"] <= made["bar"] == 1.02, row["quantizer"]
    assert made["ratio"] == rows[made["worst"]]["ratio"] == max(row["ratio"] for row in rows.values())
