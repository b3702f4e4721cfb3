"""Fine-grained and shared experts at the same parameters and FLOPs.

    Dai et al. (2024), "DeepSeekMoE: Towards Ultimate Expert Specialization in Mixture-of-Experts Language
    Models"

    python -m experiments.reproduce fine_grained --budget=cpu

The paper's ablation at its smallest: 2 of 16 experts (GShard's), the same weights cut into 64
experts of which a token takes 8, and of these one that all tokens share and 7 of 63. Hidden units per token
and in all are equal; the router has four times as many columns.
"""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.reproduce import mixtures
from experiments.reproduce.claims import Claim, Outcome, judge, skipped
from experiments.reproduce.mixtures import Sizes

BUDGETS = {"cpu": Sizes(steps=160, seeds=(0, 1, 2))}
_HIDDEN = 128  # units of a coarse expert
ARMS = {
    "2 of 16": dict(experts=16, k=2, expert_width=_HIDDEN, shared=0),
    "8 of 64": dict(experts=64, k=8, expert_width=_HIDDEN // 4, shared=0),
    "1 + 7 of 63": dict(experts=63, k=7, expert_width=_HIDDEN // 4, shared=_HIDDEN // 4),
}
COARSE, FINE, SHARED = ARMS


def run(budget: str, folder: Path) -> Outcome:
    """Trains what is not yet in `folder`, and judges the claims."""
    sizes = BUDGETS[budget]
    named = {arm.replace(" + ", "-").replace(" ", "-"): fields for arm, fields in ARMS.items()}
    found = mixtures.numbers(mixtures.train(folder, named, sizes))
    numbers = dict(zip(ARMS, found.values(), strict=True))
    return Outcome(
        title='Dai et al. (2024), "DeepSeekMoE: Towards Ultimate Expert Specialization in '
        'Mixture-of-Experts Language Models"',
        claims=claims(numbers),
        numbers=numbers,
        tables={"Runs": mixtures.table(numbers, "experts")},
        notes=[
            f"The models are tiny (width {sizes.width}, {sizes.layers} layers, {sizes.steps} steps of "
            f"{sizes.batch} sequences of {sizes.length} tokens), where the paper's smallest has 2B "
            "parameters; and they are judged by test loss, where the paper's ablation shows benchmarks.",
            "All arms drop nothing, and balance over the batch with the weight 0.01 and a z-loss of 0.001; "
            "weights of the chosen experts are divided by their sum in all arms.",
            "Every layer is a mixture; the paper's first is dense.",
        ],
        draw=lambda figure: _draw(figure, numbers),
    )


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """Returns the claims with their verdicts; the rules were written before the runs."""

    def compared(ours: str, theirs: str) -> tuple[str, str]:
        difference = mixtures.paired(*(mixtures.values(numbers, arm, "loss") for arm in (ours, theirs)))
        verdict = judge(max(difference) < 0, statistics.mean(difference) < 0)
        return f"{mixtures.spread(difference)} nats a token", verdict

    rule = (
        "difference of the test losses, paired by seed: reproduced if it is below 0 with every seed; "
        "direction if it is in the mean."
    )
    return [
        Claim(
            "fine-grained and shared experts are better than 2 of 16",
            "DeepSeekMoE is above GShard at equal parameters and computation (ablation study)",
            rule,
            *compared(SHARED, COARSE),
        ),
        Claim(
            "fine segmentation alone helps",
            "finer segmentation is better throughout (ablation study, with a shared expert)",
            rule,
            *compared(FINE, COARSE),
            "Here it is shown without the shared expert.",
        ),
        Claim(
            "a shared expert helps",
            "isolating a shared expert is better on most benchmarks (ablation study, at coarse experts)",
            rule,
            *compared(SHARED, FINE),
            "Here it is shown with fine experts.",
        ),
        skipped(
            "DeepSeekMoE 2B is as good as GShard with 1.5 times the expert parameters",
            "comparable performance (abstract)",
            "reproduced if the loss is no higher.",
            "A fourth arm would not fit the time.",
        ),
    ]


def _draw(figure: Figure, numbers: dict[str, Any]) -> None:
    axis = figure.subplots()
    mixtures.dots(axis, numbers, "loss", list(ARMS))
    axis.set_ylabel("test loss, nats a token")
    axis.set_title("The same weights and FLOPs, in coarse, fine and shared experts")
