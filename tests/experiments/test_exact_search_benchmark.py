import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks import exact_search, harness


def test_check_allows_near_ties_only():
    vectors_ND = np.array([[1.0], [0.5], [0.50001], [0.2]], np.float32)
    queries_QD = np.ones((1, 1), np.float32)
    found = [[1.0, 0.50001]], [[0, 2]]
    exact_search.check(vectors_ND, queries_QD, *map(np.array, found), *map(np.array, found))
    near = [[1.0, 0.5]], [[0, 1]]
    exact_search.check(vectors_ND, queries_QD, *map(np.array, found), *map(np.array, near))
    for scores, rows, message in (
        ([[1.0, 0.2]], [[0, 3]], "scores differ"),
        ([[1.0, 0.50001]], [[0, 3]], "do not have the scores"),
        ([[1.0, 0.50001]], [[0, 0]], "found twice"),
    ):
        with pytest.raises(harness.BenchmarkError, match=message):
            exact_search.check(
                vectors_ND, queries_QD, *map(np.array, found), np.array(scores), np.array(rows)
            )


@pytest.mark.bench
def test_full_size_finds_what_the_peers_find():
    # In a process of its own: the tests' simulated devices would share out the cores. It checks the
    # results against both peers before it reports.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments.benchmarks.exact_search", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["name"] == "exact_search"
    assert (made["documents"], made["width"], made["k"], made["batch"]) == (200_000, 256, 100, 64)
    assert (made["better"], made["unit"]) == ("higher", "queries/s")
    assert made["ratio"] == pytest.approx(made["ours"] / made["peer"])
    assert made["matmul_fraction"] == pytest.approx(made["ours"] / made["matmul"])
    assert made["peer_name"] in ("faiss IndexFlatIP", "torch.topk")
    assert made["device"]
