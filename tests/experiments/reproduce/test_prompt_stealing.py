"""The attack by ties on a tiny model, its bookkeeping, and the rules of its claims."""

import copy
import json

import numpy as np
import pytest

from experiments.reproduce import prompt_stealing, tie_attack
from experiments.reproduce.claims import Outcome, write
from experiments.reproduce.prompt_stealing import DEFENSES, OPEN, Budget, Theft, Thefts
from experiments.reproduce.tie_attack import Sizes
from moe import leakage

SIZES = Sizes(rows=8, length=6, vocabulary=64, width=16, heads=2, hidden=8)


@pytest.fixture(scope="module")
def thefts(tmp_path_factory):
    return Thefts(tmp_path_factory.mktemp("thefts") / "thefts.jsonl", seed=5, sizes=SIZES)


@pytest.mark.slow
def test_a_prompt_is_read_and_no_more_queries_are_counted_than_it_takes(thefts):
    theft = thefts.steal(OPEN, (3, 1), 4)
    assert (theft.found, theft.shown, theft.right) == ((3, 1), (True, True), 2)
    # Of each expert: 2 queries for each guess and each number of unknown tokens.
    assert 2 * (1 + 1) <= theft.queries <= 2 * (3 * 2 + 1) * SIZES.experts
    assert theft.queries % 2 == 0


@pytest.mark.slow
def test_what_was_done_is_not_done_again(thefts, monkeypatch):
    first = thefts.steal(OPEN, (3, 1), 4)
    monkeypatch.setattr(tie_attack.Attacker, "steal", None)
    assert thefts.steal(OPEN, (3, 1), 4) == first
    with thefts._file.open("a") as cut:
        cut.write('{"of": ["st')  # as when a machine is switched off
    assert Thefts(thefts._file, seed=5, sizes=SIZES).steal(OPEN, (3, 1), 4) == first


def test_two_queries_tell_a_right_prompt_from_a_wrong_one(thefts):
    assert thefts.confirms(OPEN, (3, 1), (3, 1))
    assert not thefts.confirms(OPEN, (3, 1), (3, 2))


def test_only_the_shared_layers_depend_on_the_batch():
    depends = {
        name: leakage.of(tie_attack.language_model(SIZES, mixture))["block.feed_forward"][1].batch
        for name, mixture in tie_attack.mixtures(SIZES).items()
    }
    assert depends == {
        OPEN: True,
        "random ties": True,
        "groups of one text": False,
        "token choice": False,
    }
    assert set(depends) == {OPEN, *DEFENSES}


def test_scores_that_agree_in_five_digits_tie_and_the_first_goes_first():
    score = np.array([[[0.1, 0.2, 0.200004, 0.3]]], np.float32)
    assert tie_attack.by_position(score, 2, None).tolist() == [[[3, 1]]]


def test_a_recovery_is_judged_against_guessing():
    theft = Theft(OPEN, (1, 2, 3), 27, (1, 2, 9), (True, True, False), 10)
    found = prompt_stealing._recovery([theft, theft])
    assert (found["right"], found["tokens"], found["shown"], found["prompts_right"]) == (4, 6, 4, 0)
    # P(4 or more of 6) = sum over k of (6 over k) 26^(6 - k) / 27^6
    assert found["chance"] == pytest.approx((15 * 26**2 + 6 * 26 + 1) / 27**6, rel=1e-6)


def test_a_changed_prompt_differs_in_one_letter():
    rng = np.random.default_rng(0)
    for _ in range(50):
        changed = prompt_stealing._changed((1, 27, 14), rng)
        assert sum(a != b for a, b in zip(changed, (1, 27, 14), strict=True)) == 1
        assert all(1 <= token <= 27 for token in changed)


def numbers():
    """What `measure` would give where every claim is reproduced."""
    recovery = lambda right, chance: {
        "prompts": 10, "prompts_right": right // 5, "tokens": 50, "right": right, "shown": right,
        "queries": 4_000, "chance": chance,
    }  # fmt: skip
    points = [(2, 12, 30.0), (4, 12, 110.0), (8, 12, 400.0), (4, 6, 55.0), (4, 24, 220.0)]
    return {
        "recovery": {OPEN: recovery(50, 0.0), **{name: recovery(2, 0.5) for name in DEFENSES}},
        "confirmed": {"right": 20, "wrong": 1, "of": 20},
        "queries": [
            {"length": M, "alphabet": V, "mean": mean, "all": [mean], "right": M, "tokens": M}
            for M, V, mean in points
        ],
        "growth": {"length": 1.9, "alphabet": 1.0},
        "of_bound": 0.5,
        "sizes": {"lengths": [2, 4, 8], "alphabets": [6, 12, 24]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "claim", "verdict"),
    [
        (("recovery", OPEN, "right"), 47, 0, "direction"),
        (("recovery", OPEN, "prompts_right"), 8, 0, "direction"),
        (("recovery", OPEN, "queries"), 5_050, 1, "direction"),
        (("recovery", OPEN, "queries"), 10_050, 1, "not reproduced"),
        (("growth", "length"), 2.3, 2, "direction"),
        (("growth", "alphabet"), 0.6, 2, "direction"),
        (("growth", "length"), 3.1, 2, "not reproduced"),
        (("of_bound",), 1.1, 2, "direction"),
        (("confirmed", "wrong"), 2, 3, "direction"),
        (("confirmed", "right"), 1, 3, "not reproduced"),
        (("recovery", "token choice", "chance"), 0.009, 4, "direction"),
        (("recovery", "random ties"), {"right": 40, "tokens": 50, "chance": 0.0}, 6, "not reproduced"),
    ],
)
def test_rules_of_the_claims(path, value, claim, verdict):
    good = numbers()
    assert {claim.verdict for claim in prompt_stealing.claims(good)} == {"reproduced"}
    changed = copy.deepcopy(good)
    of = changed
    for name in path[:-1]:
        of = of[name]
    of[path[-1]] = value
    assert prompt_stealing.claims(changed)[claim].verdict == verdict


def test_the_table_and_the_plot_are_made_of_the_numbers(tmp_path):
    found = numbers()
    outcome = Outcome(
        "t", prompt_stealing.claims(found), found, prompt_stealing._tables(found), prompt_stealing.NOTES,
        lambda figure: prompt_stealing._draw(figure, found),
    )  # fmt: skip
    write(tmp_path, "prompt_stealing", outcome, budget="cpu", command="c", seconds=1, cpu_seconds=1)
    assert "50 of 50" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "table.json").read_text())["verdict"] == "reproduced"
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.parametrize("budget", prompt_stealing.BUDGETS.values(), ids=prompt_stealing.BUDGETS)
def test_every_budget_fits_the_model(budget: Budget):
    assert budget.words <= len(prompt_stealing.WORDS) == len(set(prompt_stealing.WORDS))
    assert max(map(len, prompt_stealing.WORDS)) < prompt_stealing.MODEL.length
    assert max(budget.lengths) < prompt_stealing.MODEL.length
    assert max(budget.alphabets) <= len(prompt_stealing.LETTERS) < prompt_stealing.MODEL.vocabulary
