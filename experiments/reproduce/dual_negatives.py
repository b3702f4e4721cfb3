"""Which hard negatives a dual encoder should be trained with.

    python -m experiments.reproduce dual_negatives --budget=cpu

One listed negative beside those in the batch, from BM25 (Karpukhin et al., 2020, DPR), from a trained dual
encoder (Zhan et al., 2021, STAR), from the model in training (Xiong et al., 2021, ANCE), from BM25 without
what a cross-encoder finds relevant (Qu et al., 2021, RocketQA), from BM25 weighted by how likely it is no
false negative (Cai et al., 2022); or no listed one, but the whole corpus ranked at each step by a query tower
above documents that stay as they are (Zhan et al., 2021, ADORE).
"""

from pathlib import Path

from experiments.reproduce import ablation
from experiments.reproduce.ablation import BUDGETS, Ablation, Cell, Judge
from experiments.reproduce.claims import Claim, Outcome

__all__ = ["BUDGETS", "run"]

CELLS = (
    Cell("in-batch", "in-batch negatives alone"),
    Cell("bm25", "one of BM25's first 30", given={"recipe": "bm25"}),
    Cell("refreshed", "BM25's, then the model's own, mined 5 times", given={"recipe": "refreshed"}),
    Cell(
        "denoised",
        "one of BM25's that a cross-encoder finds not relevant",
        given={"recipe": "denoised"},
        needs={"run": "cross_encoder"},
    ),
    Cell(
        "mined",
        "one of the first 30 of the first cell's run",
        given={"recipe": "mined"},
        needs={"run": "in-batch"},
        extra=True,
    ),
    Cell(
        "dynamic",
        "ADORE, from the first cell's run",
        given={"recipe": "dynamic"},
        needs={"run": "in-batch"},
        extra=True,
    ),
    Cell("debiased", "BM25's, by coupled estimation", given={"recipe": "coupled_estimation"}, extra=True),
)


def run(budget: str, folder: Path) -> Outcome:
    return ablation.run(ABLATION, budget, folder)


def claims(judge: Judge) -> list[Claim]:
    return [
        judge.above(
            "a hard negative of BM25 helps",
            "top-20 accuracy on Natural Questions 73.0 with 127 in-batch negatives, 78.0 with one of BM25 a "
            "query beside (DPR, table 3)",
            "bm25",
            "in-batch",
        ),
        judge.above(
            "refreshed negatives are better than BM25's",
            "MRR@10 on MS MARCO 0.330 with negatives of the model in training, 0.299 with BM25's (ANCE, "
            "table 1)",
            "refreshed",
            "bm25",
        ),
        judge.above(
            "denoised negatives are better than noisy ones",
            "MRR@10 on MS MARCO 36.4 with denoised hard negatives, 26.0 with undenoised ones and 33.3 with "
            "none (RocketQA, table 4)",
            "denoised",
            "bm25",
        ),
        judge.above(
            "dynamic negatives are better than static ones",
            "MRR@10 on MS MARCO 0.347 with both of STAR and ADORE, 0.340 with STAR (Zhan et al., table 2)",
            "dynamic",
            "mined",
        ),
        judge.above(
            "debiasing hard negatives helps",
            "coupled estimation is above training with the same negatives as they are (Cai et al., 2022)",
            "debiased",
            "bm25",
        ),
    ]


ABLATION = Ablation(
    title="Negatives: DPR (2020), ANCE, RocketQA, STAR and ADORE (2021), coupled estimation (2022)",
    cells=CELLS,
    claims=claims,
    teachers={"cross_encoder": ("cross_encoder/beir_folder.py", ablation.CROSS_ENCODER)},
    notes=[
        "The encoders are bags of subwords from scratch, 150 steps of 512, where the papers fine-tune BERT.",
        "The cross-encoder is from scratch too (2 layers of 128), and weaker than the dual encoders that it "
        "judges for; in the papers it is by far the strongest model.",
    ],
)
