"""Which objective a dual encoder should have, with and without a teacher.

    python -m experiments.reproduce dual_objectives --budget=cpu

All cells with listed negatives have those of BM25; a teacher is a cross-encoder trained on the same pairs.
"""

from pathlib import Path

from experiments.reproduce import ablation
from experiments.reproduce.ablation import BUDGETS, Ablation, Cell, Judge
from experiments.reproduce.claims import Claim, Outcome

__all__ = ["BUDGETS", "run"]

TEACHER = {"run": "cross_encoder"}
CELLS = (
    Cell("symmetric", "InfoNCE, both ways"),
    Cell("hardest-triplet", "triplet, hardest of the batch", given={"recipe": "hardest_triplet"}),
    Cell(
        "cross-encoder-kl",
        "KL to a cross-encoder, 4 negatives of BM25, and InfoNCE",
        given={"recipe": "cross_encoder_kl"},
        needs=TEACHER,
    ),
    Cell("one-way", "InfoNCE from queries to documents", given={"recipe": "one_way"}, extra=True),
    Cell("sigmoid", "sigmoid of each pair", given={"recipe": "sigmoid"}, extra=True),
    Cell("focal", "focal InfoNCE", given={"recipe": "focal"}, extra=True),
    Cell("mixed", "focal InfoNCE with mixed hard negatives", given={"recipe": "mixed"}, extra=True),
    Cell("listed-triplet", "triplet, BM25's negatives", given={"recipe": "listed_triplet"}, extra=True),
    Cell("passage-centric", "PAIR, first stage", given={"recipe": "pair"}, extra=True),
    Cell(
        "cross-encoder-margin-mse",
        "margin-MSE to a cross-encoder, 4 negatives of BM25",
        given={"recipe": "cross_encoder_margin_mse"},
        needs=TEACHER,
        extra=True,
    ),
    Cell("bm25-kl", "KL to BM25, its 4 negatives, and InfoNCE", given={"recipe": "bm25_kl"}, extra=True),
)


def run(budget: str, folder: Path) -> Outcome:
    return ablation.run(ABLATION, budget, folder)


def claims(judge: Judge) -> list[Claim]:
    return [
        judge.above(
            "InfoNCE is above a triplet loss",
            "the likelihood of the positive is somewhat above a triplet loss on Natural Questions (DPR, "
            "appendix)",
            "symmetric",
            "hardest-triplet",
        ),
        judge.above(
            "a cross-encoder's distillation helps",
            "listwise distillation with InfoNCE is above InfoNCE (Tamber et al., 2025)",
            "cross-encoder-kl",
            "symmetric",
        ),
        judge.above(
            "PAIR's passage-centric loss helps",
            "without it MS MARCO and Natural Questions suffer (Ren et al., 2021, ablation)",
            "passage-centric",
            "symmetric",
        ),
        judge.above("focal reweighting helps", "KaLM-Embedding-V2's ablations", "focal", "one-way"),
    ]


ABLATION = Ablation(
    title="Objectives and distillation: DPR (2020), PAIR (2021), KaLM-Embedding-V2 and Tamber et al. (2025)",
    cells=CELLS,
    claims=claims,
    teachers={"cross_encoder": ("cross_encoder/beir_folder.py", ablation.CROSS_ENCODER)},
    notes=[
        "The cross-encoder is from scratch (2 layers of 128), and weaker than the dual encoders it teaches; "
        "in the papers it is by far the strongest model."
    ],
)
