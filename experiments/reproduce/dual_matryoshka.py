"""Vectors that can be cut, beside encoders trained at each width.

    python -m experiments.reproduce dual_matryoshka --budget=cpu

Kusupati et al. (2022), "Matryoshka Representation Learning": one model trained for nested widths is as
accurate at each as one trained at that width alone, and far better than cutting the vectors of a model that
was not.
"""

import statistics
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from experiments.reproduce import ablation
from experiments.reproduce.ablation import BUDGETS, MEASURE, Ablation, Cell, Found, Judge
from experiments.reproduce.claims import Claim, Outcome

__all__ = ["BUDGETS", "run"]

WHOLE, WIDTHS = 512, (32, 64, 128, 256)
NESTED = {"recipe": "matryoshka"}
CUT = {"evaluation.widths": "(32,64,128,256)"}
CELLS = (
    Cell("512", "trained at 512 alone"),
    *(
        Cell(f"cut-{w}", f"the same, cut to {w}", changed=CUT, system=f"dual_encoder@{w}", extra=True)
        for w in WIDTHS
    ),
    Cell("nested-512", "Matryoshka, whole", given=NESTED),
    *(
        Cell(f"nested-{w}", f"Matryoshka, cut to {w}", given=NESTED, system=f"dual_encoder@{w}")
        for w in WIDTHS
    ),
    *(
        Cell(
            f"alone-{w}",
            f"trained at {w} alone",
            changed={f"task.model.{side}.encoder.embed.width": w for side in ("query", "document")},
            extra=w != 64,
        )
        for w in WIDTHS
    ),
)


def run(budget: str, folder: Path) -> Outcome:
    return ablation.run(ABLATION, budget, folder)


def claims(judge: Judge) -> list[Claim]:
    return [
        judge.above(
            "cut to 64, nested vectors are above others",
            "at low widths the accuracy of cut vectors of a plain model falls apart, that of nested ones "
            "does not (figure 2)",
            "nested-64",
            "cut-64",
        ),
        judge.not_below(
            "cut to 64, nested vectors are as good as those trained at 64",
            "as accurate as independently trained models at each width (abstract)",
            "nested-64",
            "alone-64",
        ),
        judge.not_below(
            "whole, nested vectors lose nothing",
            "as accurate at the whole width as a model trained for it alone",
            "nested-512",
            "512",
        ),
    ]


def draw(figure: Figure, found: Mapping[str, Found]) -> None:
    """Draws nDCG@10 over the width."""
    axes = figure.subplots()
    for kind, label in (
        ("nested", "Matryoshka"),
        ("cut", "trained at 512, cut"),
        ("alone", "trained at the width"),
    ):
        names = [(w, "512" if (w == WHOLE and kind != "nested") else f"{kind}-{w}") for w in (*WIDTHS, WHOLE)]
        there = [(w, statistics.fmean(found[name].means[MEASURE])) for w, name in names if name in found]
        if len(there) > 1:
            axes.plot(*zip(*there, strict=True), "o-", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks((*WIDTHS, WHOLE), [str(w) for w in (*WIDTHS, WHOLE)])
    axes.set_xlabel("width of the vectors that are searched")
    axes.set_ylabel(f"nDCG@10 on {ablation.COLLECTIONS[0]}, mean of the seeds")
    axes.legend()
    axes.grid(alpha=0.3)


ABLATION = Ablation(
    title='Kusupati et al. (2022), "Matryoshka Representation Learning"',
    cells=CELLS,
    claims=claims,
    notes=[
        "Bags of subwords from scratch, 150 steps of 512; the loss at a width is InfoNCE of the cut vectors, "
        "scaled to length 1."
    ],
    draw=draw,
)
