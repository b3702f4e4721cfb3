import json

import pytest

from experiments.benchmarks import exact_search, harness


def test_interleaved_medians():
    now, calls = [0.0], []

    def costing(name, *seconds):
        def call(number):
            calls.append((name, number))
            now[0] += seconds[number]

        return call

    medians = harness.interleaved_medians(
        {"a": costing("a", 1, 2, 9), "b": costing("b", 5, 5, 4)}, rounds=3, warmup=1, clock=lambda: now[0]
    )
    assert medians == {"a": 2.0, "b": 5.0}
    # One warm-up each, then in turn, a different one first in each round.
    assert calls == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    with pytest.raises(ValueError, match="rounds is 0"):
        harness.interleaved_medians({}, rounds=0)


def test_record_and_report(capsys):
    made = harness.record(name="x", ours=3.0, peer=2.0, better="higher", unit="queries/s", peer_name="y")
    assert made["ratio"] == 1.5
    assert made["device"]
    harness.report(made, ["readable"], as_json=False)
    assert capsys.readouterr().out == "readable\n"
    harness.report(made, ["readable"], as_json=True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == made
    with pytest.raises(ValueError, match="better is 'up'; allowed: 'higher', 'lower'"):
        harness.record(name="x", ours=1.0, peer=1.0, better="up", unit="s")


def test_missing_peer_names_the_extra():
    with pytest.raises(
        harness.BenchmarkError, match=r"not installed: no_such_peer\. .*`bench` extra.*make bench"
    ):
        harness.import_peers("json", "no_such_peer")


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        exact_search.main(["--help"])
    assert "python -m experiments.benchmarks.exact_search --json" in capsys.readouterr().out


def test_bad_arguments_are_named(capsys):
    for arguments, message in (
        (["--k=0"], "--k is 0"),
        (["--k=9", "--documents=5"], "at most --documents (5)"),
    ):
        with pytest.raises(SystemExit):
            exact_search.main(arguments)
        assert message in capsys.readouterr().err
