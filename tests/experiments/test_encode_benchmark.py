import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks import contrastive, encode, random_encoder


@pytest.mark.parametrize("program", [encode, contrastive])
def test_wrong_sizes_are_refused(program, capsys):
    with pytest.raises(SystemExit):
        program.main(["--documents=0" if program is encode else "--cached-chunk=7"])
    assert ("--documents is 0" if program is encode else "--cached-chunk is 7") in capsys.readouterr().err


def test_texts_are_of_mixed_length_and_always_the_same():
    texts = random_encoder.texts(400, words=20, spread=0.8, most=50, seed=0)
    lengths = np.array([len(text.split()) for text in texts])
    assert (lengths.min() >= 3, lengths.max(), 17 < np.median(lengths) < 23) == (True, 50, True)
    assert texts == random_encoder.texts(400, words=20, spread=0.8, most=50, seed=0)
    assert texts != random_encoder.texts(400, words=20, spread=0.8, most=50, seed=1)


def test_vectors_are_compared_at_length_1():
    vectors_ND = encode.at_length_1(np.array([[3.0, 4.0], [0.0, 2.0]]))
    np.testing.assert_allclose(vectors_ND, [[0.6, 0.8], [0.0, 1.0]])


@pytest.mark.bench
@pytest.mark.parametrize("name", ["encode", "contrastive"])
def test_full_size_agrees_with_the_peer(name):
    # In a process of its own: the tests' simulated devices would share out the cores.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", f"experiments.benchmarks.{name}", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    made = json.loads(done.stdout.splitlines()[-1])
    assert (made["name"], made["better"]) == (name, "higher")
    for of in (made, made["cached"]) if name == "contrastive" else (made,):
        assert of["ratio"] == pytest.approx(of["ours"] / of["peer"])
    assert made.get("padding", 0) < 0.10
