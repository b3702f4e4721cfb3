"""Balancing experts over the whole batch rather than over each micro-batch.

    Qiu et al. (2025), "Demons in the Detail: On Implementing Load Balancing Loss for Training Specialized
    Mixture-of-Expert Models"

    python -m experiments.reproduce global_balance --budget=cpu

Two arms that differ in one thing, over how many sequences E sum f_i P_i is computed: two (a micro-batch of
large-scale training "contains very few sequences") or all 32 of the step. The paper finds lower perplexity
and experts that are specialized in domains. Here a domain is a collection, and specialization the share of
the choice of expert that the domain of a test text explains, I(expert; domain) / H(expert).
"""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.reproduce import mixtures
from experiments.reproduce.claims import Claim, Outcome, judge, skipped
from experiments.reproduce.mixtures import Sizes

BUDGETS = {"cpu": Sizes(steps=300, seeds=(0, 1, 2))}
MICRO, GLOBAL = "micro", "global"
_SEQUENCES = 2  # of a micro-batch


def run(budget: str, folder: Path) -> Outcome:
    """Trains what is not yet in `folder`, and judges the claims."""
    sizes = BUDGETS[budget]
    arms = {MICRO: dict(parts=sizes.batch // _SEQUENCES), GLOBAL: dict(parts=0)}
    numbers = mixtures.numbers(mixtures.train(folder, arms, sizes))
    return Outcome(
        title='Qiu et al. (2025), "Demons in the Detail: On Implementing Load Balancing Loss for Training '
        'Specialized Mixture-of-Expert Models"',
        claims=claims(numbers),
        numbers=numbers,
        tables={"Runs": mixtures.table(numbers, "balance")},
        notes=[
            f"The models are tiny (width {sizes.width}, {sizes.layers} layers, 16 experts, top 2, "
            f"{sizes.steps} steps of {sizes.batch} sequences of {sizes.length} tokens), where the paper's "
            "have up to 42.8B parameters and 400B tokens.",
            f"A micro-batch is {_SEQUENCES} consecutive sequences of the same batch on one machine; the "
            "gradient of everything but the balancing loss is the same in both arms.",
            "Every layer is balanced with the weight 0.01, and has a router z-loss of 0.001 in both arms.",
        ],
        draw=lambda figure: _draw(figure, numbers),
    )


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """Returns the claims with their verdicts; the rules were written before the runs."""
    difference = lambda key: mixtures.paired(*(mixtures.values(numbers, arm, key) for arm in (GLOBAL, MICRO)))
    loss, special = difference("loss"), difference("domain_information")
    lower, higher = max(loss) < 0, min(special) > 0
    in_mean = statistics.mean(loss) < 0, statistics.mean(special) > 0
    shown = f"loss {mixtures.spread(loss)}, specialization {mixtures.spread(special)}"
    return [
        Claim(
            "global balance: more specialization and a lower loss",
            "both (abstract)",
            "global minus micro, paired by seed: reproduced if with every seed the test loss is lower and "
            "the domain explains more of the choice of expert; direction if both hold of the means.",
            shown,
            judge(lower and higher, all(in_mean)),
        ),
        Claim(
            "experts are more specialized in domains",
            "domain specialization is greatly improved (abstract)",
            "reproduced if with every seed the domain explains more, and in the mean at least twice as "
            "much; direction if it explains more in the mean.",
            f"global {_shown(numbers, GLOBAL, 'domain_information')}; micro "
            f"{_shown(numbers, MICRO, 'domain_information')}",
            judge(
                higher
                and _mean(numbers, GLOBAL, "domain_information")
                >= 2 * _mean(numbers, MICRO, "domain_information"),
                in_mean[1],
            ),
        ),
        Claim(
            "the loss is lower",
            "gains in pre-training perplexity (abstract)",
            "reproduced if the test loss is lower with every seed; direction if it is in the mean.",
            f"global {_shown(numbers, GLOBAL, 'loss')}; micro {_shown(numbers, MICRO, 'loss')}",
            judge(lower, in_mean[0]),
        ),
        skipped(
            "downstream tasks improve",
            "gains in downstream tasks (abstract)",
            "reproduced if the mean score is higher.",
            "Models of this size do none of these tasks.",
        ),
    ]


def _mean(numbers: dict[str, Any], arm: str, key: str) -> float:
    return statistics.mean(mixtures.values(numbers, arm, key).values())


def _shown(numbers: dict[str, Any], arm: str, key: str) -> str:
    return mixtures.spread(list(mixtures.values(numbers, arm, key).values()))


def _draw(figure: Figure, numbers: dict[str, Any]) -> None:
    axes = figure.subplots(1, 2)
    for axis, key, title in (
        (axes[0], "domain_information", "share of the choice that the domain explains"),
        (axes[1], "loss", "test loss, nats a token"),
    ):
        mixtures.dots(axis, numbers, key, [f"{MICRO}-batch", f"{GLOBAL} batch"])
        axis.set_title(title, fontsize=10)
    figure.suptitle("Load balancing over two sequences, or over the batch")
