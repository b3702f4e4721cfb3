import itertools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.benchmarks import constrained_decoding, harness, hugging_face
from experiments.benchmarks.constrained_decoding import Ids, Shape
from generative_retrieval import beam, trie
from generative_retrieval.speller import Speller

TINY = Shape(width=8, hidden=12, heads=2, layers=1, words=20, batch=2, query_length=5, beams=3)


def test_ids_are_different_and_hold_no_end():
    symbols_NT = Ids(40, 3, 4).draw()
    assert symbols_NT.dtype == np.int32
    assert len(np.unique(symbols_NT, axis=0)) == 40
    assert set(np.unique(symbols_NT)) == {1, 2, 3, 4}


def test_without_constraint_it_finds_what_a_trie_of_all_strings_has(quick_search):
    """All 3^2 strings of three symbols; the last symbol of a string tells them apart."""
    symbols_NT = np.array(list(itertools.product(range(3), repeat=2)), np.int32)
    free = quick_search(constrained_decoding.Free(size=3, length=2))
    constrained = quick_search(trie.build(symbols_NT, 3))
    np.testing.assert_array_equal(free.scores_Bn, constrained.scores_Bn)
    last = symbols_NT[np.asarray(constrained.documents_Bn), -1]
    assert len(np.unique(last)) > 1
    np.testing.assert_array_equal(np.asarray(free.documents_Bn) % 3, last)


@pytest.fixture
def quick_search():
    """The search of a trie with random logits, of two queries, three beams and three results."""
    logits_BKV = jax.random.normal(jax.random.key(0), (2, 3, 3))
    step = lambda symbols_BK, *_: (logits_BKV[:, : symbols_BK.shape[1]], ())
    speller = Speller(2, lambda slots: (), step)
    search = lambda tree: beam.search(speller, tree, beams=3, results=3)
    return jax.jit(search, compiler_options={"xla_backend_optimization_level": 0})


def test_allowed_symbols_are_those_that_follow_a_prefix():
    allowed = hugging_face.allowed_after(np.array([[2, 1], [1, 3], [2, 3]]))
    assert allowed == {(): [1, 2], (1,): [3], (2,): [1, 3]}


def test_a_peer_that_finds_something_else_is_not_timed():
    docids, scores = np.array([[[1, 2], [1, 1]]]), np.array([[-1.0, -20.0]])
    assert constrained_decoding.check((docids, scores), (docids, scores + 1e-4)) == pytest.approx(1e-4)
    with pytest.raises(harness.BenchmarkError, match="1 of 2 docids are not the peer's"):
        constrained_decoding.check((docids, scores), (np.array([[[1, 2], [2, 2]]]), scores))
    with pytest.raises(harness.BenchmarkError, match="scores differ"):
        constrained_decoding.check((docids, scores), (docids, scores + 1e-3))


def test_figures_are_of_the_times_they_say(monkeypatch):
    """Nothing is compiled: a search of 2 symbols takes 2 s alone, 3 and 4 s with 8 and 30 docids."""
    monkeypatch.setattr(constrained_decoding, "stepper", lambda *sizes: print)
    monkeypatch.setattr(constrained_decoding, "chooser", lambda *sizes: print)
    monkeypatch.setattr(
        constrained_decoding, "beside", lambda shape, ids, rounds: record(ids, ours=8.0 * ids.length)
    )
    times = {"free": 2.0, "8": 3.0, "30": 4.0}
    monkeypatch.setattr(
        harness, "interleaved_medians", lambda runs, rounds: {name: times[name] for name in runs}
    )
    given = {"a": Ids(5, 2, 6), "b": Ids(5, 1, 6)}
    made = constrained_decoding.measure(1, TINY, given, (Ids(8, 2, 6), Ids(30, 2, 6)))
    assert made["ratio"] == 2  # of "b"
    assert made["step_s"] == {"free": 1.0, "8": 1.5, "30": 2.0}
    assert made["cost"] == {"8": 1.5, "30": 2.0}
    assert made["growth"] == 4 / 3
    assert made["bytes"] == trie.build(Ids(30, 2, 6).draw(), 7).nbytes / 30
    json.dumps(made)
    text = "\n".join(constrained_decoding.lines(made))
    assert "ratio 2.00 (bar 1.7)" in text
    assert "30 docids: 2000.0 ms, 2.000 times" in text


def record(ids, ours):
    sizes = dict(documents=ids.documents, length=ids.length, symbols=ids.symbols)
    made = dict(name="beside_peer", ours=ours, peer=4.0, better="higher", unit="queries/s")
    return harness.record(**made, ids=sizes, score_difference=0.0)


def test_wrong_rounds_are_refused(capsys):
    with pytest.raises(SystemExit):
        constrained_decoding.main(["--rounds=0"])
    assert "--rounds is 0" in capsys.readouterr().err


@pytest.mark.bench
def test_a_tiny_model_finds_what_hugging_face_finds():
    part = constrained_decoding.beside(TINY, Ids(60, 3, 6), rounds=1)
    assert part["ratio"] > 0


@pytest.mark.bench
def test_full_size():
    # In a process of its own: the tests' simulated devices would share out the cores.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments.benchmarks.constrained_decoding", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["ratio"] >= made["bars"]["at least"]["ratio"]
    most = made["bars"]["at most"]
    for name in ("growth", "build_s", "bytes"):
        assert made[name] <= most[name]
    for documents, bar in most["cost"].items():
        assert made["cost"][documents] <= bar
