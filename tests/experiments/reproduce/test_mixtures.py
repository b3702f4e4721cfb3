"""The rules of the studies of mixtures, on made-up numbers; their runs are not tests."""

import json

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.reproduce import drop_towards_end, fine_grained, global_balance, mixtures
from experiments.reproduce.mixtures import Figures


def run(loss=2.0, domain=0.1):
    return {
        "loss": {"all": loss, "stories": loss},
        "domain_information": domain,
        "token_id_information": 0.5,
        "load_cv": 0.3,
        "dropped": 0.0,
    }


def verdicts(claims):
    return [claim.verdict for claim in claims]


def drawn(draw):
    figure = Figure()
    FigureCanvasAgg(figure)
    draw(figure)
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("losses", "domains", "expected"),
    [
        ((1.9, 1.8), (0.3, 0.25), ["reproduced", "reproduced", "reproduced", "skipped"]),
        # one seed is worse, the mean is better; specialization is higher, but not twice
        ((1.7, 2.1), (0.15, 0.12), ["direction", "direction", "direction", "skipped"]),
        ((2.1, 2.2), (0.3, 0.3), ["not reproduced", "reproduced", "not reproduced", "skipped"]),
    ],
)
def test_global_balance_is_judged_seed_by_seed(losses, domains, expected):
    numbers = {
        "micro": {"0": run(), "1": run()},
        "global": {
            str(seed): run(loss, domain)
            for seed, (loss, domain) in enumerate(zip(losses, domains, strict=True))
        },
    }
    assert verdicts(global_balance.claims(numbers)) == expected
    assert mixtures.table(numbers, "balance")[1][0][:3] == ["micro", "0", "2.0000"]
    drawn(lambda figure: global_balance._draw(figure, numbers))


def test_fine_experts_are_compared_with_coarse_and_shared_ones():
    numbers = {
        "2 of 16": {"0": run(2.0), "1": run(2.0)},
        "8 of 64": {"0": run(1.9), "1": run(2.05)},  # better in the mean alone
        "1 + 7 of 63": {"0": run(1.8), "1": run(1.9)},
    }
    assert verdicts(fine_grained.claims(numbers)) == ["reproduced", "direction", "reproduced", "skipped"]
    drawn(lambda figure: fine_grained._draw(figure, numbers))


def test_the_arms_of_fine_grained_have_the_same_hidden_units():
    for arm in fine_grained.ARMS.values():
        assert arm["k"] * arm["expert_width"] + arm["shared"] == 2 * 128
        assert arm["experts"] * arm["expert_width"] + arm["shared"] == 16 * 128


def test_drops_towards_the_end_are_those_of_the_last_quarter():
    def layer(dropped):
        return {
            "dropped_by_position": dropped,
            "by_token_id": {"information": 0.6, "shuffled": {"information": 0.1}},
            "by_domain": {"information": 0.05},
        }

    trained = Figures({"all": 2.0}, [layer([0.0, 0.1, 0.2, 0.3]), layer([0.0, 0.0, 0.0, 0.1])])
    found = drop_towards_end.by_position(trained)
    assert found == pytest.approx([0.0, 0.05, 0.1, 0.2])
    assert drop_towards_end.quarters(found) == pytest.approx((0.0, 0.2))

    def numbers(dropped, token_id):
        one = {
            "dropped_by_position": dropped,
            "token_id": [token_id],
            "token_id_shuffled": [0.1],
            "domain": [0.1],
            "loss": {"all": 2.0},
        }
        return {"0": one, "1": one}

    late = numbers([0.01, 0.02, 0.02, 0.05], 0.6)
    assert verdicts(drop_towards_end.claims(late)) == ["reproduced", "reproduced", "skipped"]
    some = numbers([0.04, 0.04, 0.04, 0.05], 0.4)
    assert verdicts(drop_towards_end.claims(some)) == ["direction", "direction", "skipped"]
    none = numbers([0.05, 0.04, 0.04, 0.05], 0.2)
    assert verdicts(drop_towards_end.claims(none)) == ["not reproduced", "not reproduced", "skipped"]
    drawn(lambda figure: drop_towards_end._draw(figure, late, 128))


def test_a_finished_runs_numbers_are_the_means_over_layers():
    layers = [
        {"by_domain": {"information": 0.2}, "by_token_id": {"information": 0.4}, "cv": 0.1, "dropped": 0.0},
        {"by_domain": {"information": 0.4}, "by_token_id": {"information": 0.8}, "cv": 0.3, "dropped": 0.0},
    ]
    found = mixtures.numbers({"arm": {0: Figures({"all": 1.5}, layers)}})
    assert json.loads(json.dumps(found)) == found
    assert found["arm"]["0"]["domain_information"] == pytest.approx(0.3)
    assert found["arm"]["0"]["token_id_information"] == pytest.approx(0.6)
