"""What is dropped towards the end of a text, and routing by token id.

    Xue et al. (2024), "OpenMoE: An Early Effort on Open Mixture-of-Experts Language Models"

    python -m experiments.reproduce drop_towards_end --budget=cpu

A language model whose experts have places for 1.25 times their even share of a text, taken in the order of
positions. Its router is trained with the balancing loss that keeps a batch even; within
one text it is not, and whoever comes late finds no place.
"""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.reproduce import mixtures
from experiments.reproduce.claims import Claim, Outcome, judge, skipped
from experiments.reproduce.mixtures import Figures, Sizes

BUDGETS = {"cpu": Sizes(steps=200, seeds=(0, 1))}
_CAPACITY = 1.25


def run(budget: str, folder: Path) -> Outcome:
    """Trains what is not yet in `folder`, and judges the claims."""
    sizes = BUDGETS[budget]
    arms = {"capacity": dict(capacity=_CAPACITY)}
    trained = mixtures.train(folder, arms, sizes)["capacity"]
    numbers = {
        str(seed): {
            "dropped_by_position": by_position(run),
            "token_id": [layer["by_token_id"]["information"] for layer in run.layers],
            "token_id_shuffled": [layer["by_token_id"]["shuffled"]["information"] for layer in run.layers],
            "domain": [layer["by_domain"]["information"] for layer in run.layers],
            "loss": dict(run.loss),
        }
        for seed, run in trained.items()
    }
    return Outcome(
        title='Xue et al. (2024), "OpenMoE: An Early Effort on Open Mixture-of-Experts Language Models"',
        claims=claims(numbers),
        numbers=numbers,
        tables={"Dropped, by sixteenths of the text": _table(numbers)},
        notes=[
            f"The models are tiny (width {sizes.width}, {sizes.layers} layers, 16 experts, top 2, "
            f"{sizes.steps} steps of {sizes.batch} sequences of {sizes.length} tokens), where the paper's "
            "have 650M to 34B parameters.",
            f"A group is one text of at most {sizes.length} tokens; the capacity is {_CAPACITY} times an "
            "expert's even share of it. Only tokens count, not padding, of which nothing is routed.",
            "Test texts are of the domains that were trained on; the paper also shows the larger drops of "
            "multi-turn instructions, which no training text was like.",
        ],
        draw=lambda figure: _draw(figure, numbers, sizes.length),
    )


def by_position(run: Figures) -> list[float]:
    """Returns the share of choices that is dropped in each sixteenth of the text, the mean over layers."""
    layers = [layer["dropped_by_position"] for layer in run.layers]
    return [statistics.mean(values) for values in zip(*layers, strict=True)]


def quarters(dropped: list[float]) -> tuple[float, float]:
    """Returns the means of the first and the last quarter.

    >>> quarters([0.0, 0.25, 0.5, 1.0])
    (0.0, 1.0)
    """
    size = len(dropped) // 4
    return statistics.mean(dropped[:size]), statistics.mean(dropped[-size:])


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """Returns the claims with their verdicts; the rules were written before the runs."""
    ends = {seed: quarters(run["dropped_by_position"]) for seed, run in numbers.items()}
    ids, domains = _mean(numbers, "token_id"), _mean(numbers, "domain")
    shuffled = _mean(numbers, "token_id_shuffled")
    return [
        Claim(
            "tokens are dropped towards the end",
            "later tokens are more likely to be dropped (abstract)",
            "dropped share of choices in the last quarter of positions against the first: reproduced if "
            "with every seed it is at least twice as large, and above 1%; direction if it is larger.",
            "; ".join(f"{first:.2%} to {last:.2%}" for first, last in ends.values()),
            judge(
                all(last >= 2 * first and last > 0.01 for first, last in ends.values()),
                all(last > first for first, last in ends.values()),
            ),
        ),
        Claim(
            "routing is by token id, with little context",
            "routing is predominantly based on token ids, with minimal context relevance (abstract)",
            "share of the choice of expert that the token's id explains, ids of at least 20 occurrences, "
            "mean over layers and seeds: reproduced if it is above 0.5, more than what shuffled ids show by "
            "0.3, and at least five times what the domain explains; direction if, less the shuffled, it is "
            "more than twice the domain's.",
            f"token id {ids:.3f} (shuffled {shuffled:.3f}), domain {domains:.3f}",
            judge(
                ids > 0.5 and ids - shuffled > 0.3 and ids >= 5 * domains,
                ids - shuffled > 2 * domains,
            ),
        ),
        skipped(
            "routing is learned early",
            "assignments are determined early in pre-training and remain largely unchanged (abstract)",
            "reproduced if a checkpoint at a tenth of the training agrees with the last in half its choices.",
            "It needs checkpoints along the way, and a longer training than this budget has.",
        ),
    ]


def _mean(numbers: dict[str, Any], key: str) -> float:
    return statistics.mean(value for run in numbers.values() for value in run[key])


def _table(numbers: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    bins = len(next(iter(numbers.values()))["dropped_by_position"])
    header = ["seed", *(str(number + 1) for number in range(bins))]
    rows = [[seed, *(f"{v:.1%}" for v in run["dropped_by_position"])] for seed, run in numbers.items()]
    return header, rows


def _draw(figure: Figure, numbers: dict[str, Any], length: int) -> None:
    axis = figure.subplots()
    for seed, run in numbers.items():
        dropped = run["dropped_by_position"]
        middles = [(number + 0.5) * length / len(dropped) for number in range(len(dropped))]
        axis.plot(middles, [100 * value for value in dropped], marker="o", label=f"seed {seed}")
    axis.set_xlabel("position in the text")
    axis.set_ylabel("choices dropped, %")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    axis.set_title("An expert's places are taken when the end comes")
