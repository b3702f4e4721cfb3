"""How many in-batch negatives a dual encoder should see.

    python -m experiments.reproduce dual_batch_size --budget=cpu

Karpukhin et al. (2020), "Dense Passage Retrieval for Open-Domain Question Answering", table 3, and Qu et al.
(2021), "RocketQA: An Optimized Training Approach to Dense Passage Retrieval for Open-Domain Question
Answering", find that more of them are better. A batch of 512 is cut into 8 or 32 microbatches,
whose queries see the documents of their microbatch alone: steps, examples and the rate stay, the negatives
are 511, 63 or 15 a query. Beside it, the batch itself is varied at equal steps, which changes the cost too.
"""

from pathlib import Path

from experiments.reproduce import ablation
from experiments.reproduce.ablation import BUDGETS, Ablation, Cell, Judge
from experiments.reproduce.claims import Claim, Outcome

__all__ = ["BUDGETS", "run"]

CELLS = (
    Cell("in-batch-511", "512 queries, 511 in-batch negatives each"),
    Cell("in-batch-63", "the same batch in 8 microbatches", changed={"schedule.microbatches": 8}),
    Cell(
        "in-batch-15", "the same batch in 32 microbatches", changed={"schedule.microbatches": 32}, extra=True
    ),
    Cell("batch-128", "128 queries, as many steps", given={"batch": 128}, extra=True),
    Cell("batch-2048", "2,048 queries, as many steps", given={"batch": 2048}, extra=True),
)


def run(budget: str, folder: Path) -> Outcome:
    return ablation.run(ABLATION, budget, folder)


def claims(judge: Judge) -> list[Claim]:
    return [
        judge.above(
            "more in-batch negatives are better",
            "top-20 accuracy on Natural Questions 69.1 with 7, 70.8 with 31 and 73.0 with 127 in-batch "
            "negatives (DPR's table 3)",
            "in-batch-511",
            "in-batch-63",
        ),
        judge.above(
            "a larger batch is better at equal steps",
            "as above: DPR's batches of 8, 32 and 128",
            "batch-2048",
            "in-batch-511",
        ),
    ]


ABLATION = Ablation(
    title='Karpukhin et al. (2020), "Dense Passage Retrieval"; Qu et al. (2021), "RocketQA": batch size',
    cells=CELLS,
    claims=claims,
    notes=[
        "The encoders are bags of subwords from scratch, 150 steps, where the papers fine-tune BERT; the "
        "loss goes both ways, from queries to documents and back."
    ],
)
