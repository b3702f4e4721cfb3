"""Batches of queries on one topic.

    python -m experiments.reproduce dual_topics --budget=cpu

Hofstätter et al. (2021), "Efficiently Teaching an Effective Dense Retriever with Balanced Topic Aware
Sampling", draw each batch from one cluster of queries, so that in-batch negatives are hard.
"""

from pathlib import Path

from experiments.reproduce import ablation
from experiments.reproduce.ablation import BUDGETS, Ablation, Cell, Judge
from experiments.reproduce.claims import Claim, Outcome

__all__ = ["BUDGETS", "run"]

CELLS = (
    Cell("random", "batches of any queries"),
    Cell(
        "two-topics",
        "half of a batch from each of two clusters of queries' words",
        given={"recipe": "topics"},
    ),
    Cell(
        "one-topic",
        "batches of one cluster of the first cell's vectors",
        given={"recipe": "topics_of_run"},
        needs={"run": "random"},
        extra=True,
    ),
)


def run(budget: str, folder: Path) -> Outcome:
    return ablation.run(ABLATION, budget, folder)


def claims(judge: Judge) -> list[Claim]:
    paper = (
        "topic-aware batches with balanced margins are above random ones on MS MARCO and TREC-DL, with one "
        "teacher and with two (the paper's ablation)"
    )
    return [
        judge.above("topics of words help", paper, "two-topics", "random"),
        judge.above("topics of a trained model's vectors help", paper, "one-topic", "random"),
    ]


ABLATION = Ablation(
    title='Hofstätter et al. (2021), "Efficiently Teaching an Effective Dense Retriever with Balanced Topic '
    'Aware Sampling"',
    cells=CELLS,
    claims=claims,
    notes=[
        "The paper has 2,000 clusters, batches of 32 from one of them and two teachers; here 50 clusters at "
        "most, merged until each fills its part of a batch of 512, and no teacher."
    ],
)
