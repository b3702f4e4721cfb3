import json

import numpy as np
import pytest

from experiments.benchmarks import constrained_sampling


def test_worlds_are_enumerated_rightly():
    """By hand: ids 1 1 and 2 1 of symbols 0 to 2, with chosen probabilities."""
    first, second = np.asarray([[0.2, 0.6, 0.2]]), np.asarray([[1, 1, 1], [0.8, 0.1, 0.1], [0.2, 0.5, 0.3]])
    world = constrained_sampling.World(
        np.asarray([[1, 1], [2, 1]], np.int32), (np.log(first), np.log(second / second.sum(axis=1)[:, None]))
    )
    np.testing.assert_allclose(np.exp(world.log_p_of_ids()), [0.06, 0.1])
    np.testing.assert_allclose(world.true(), [0.06 / 0.16, 0.1 / 0.16])
    np.testing.assert_allclose(world.masked(), [0.75, 0.25])
    np.testing.assert_allclose(world.true(np.asarray([False, True])), [0, 1])
    np.testing.assert_allclose(world.masked(np.asarray([False, True])), [0, 1])


@pytest.mark.slow
def test_report(monkeypatch, capsys):
    monkeypatch.setattr(constrained_sampling, "_ASAP", (1, 300))
    constrained_sampling.main(
        ["--documents=10", "--symbols=16", "--length=2", "--particles=50", "--per-document=2000", "--json"]
    )
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {(row["sampler"], row.get("samples")): row for row in made["rows"]}
    masked, learned = rows["masking", None]["kl"], rows["ASAp", 300]["kl"]
    unweighted, weighted = (
        rows[name, 20_000] for name in ("unweighted rejection", "weighted rejection, SMC")
    )
    assert masked > 0.05
    assert learned < 1e-3 < rows["ASAp", 1]["kl"]
    assert weighted["kl"] < 1e-3
    assert unweighted["kl_to_masking"] < 1e-3
    asked = unweighted["evaluations_per_symbol"], weighted["evaluations_per_symbol"]
    assert asked[0] < asked[1] < made["evaluations_of_masking_per_symbol"] == 16
    assert weighted["normalizer"] == pytest.approx(made["normalizer"], rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--particles=0"], "--particles is 0; at least 1"),
        (["--documents=50", "--symbols=4", "--length=3"], "--documents is 50; allowed: at most 27"),
        (["--symbols=256"], "--symbols and --length make 16777216 ids"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        constrained_sampling.main(arguments)
    assert message in capsys.readouterr().err
