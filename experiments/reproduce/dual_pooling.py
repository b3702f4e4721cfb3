"""How a Transformer's output becomes a vector, and what its positions may see.

    python -m experiments.reproduce dual_pooling --budget=cpu

Tang and Yang (2024), "Pooling And Attention: What Are Effective Designs For LLM-Based Embedding Models?",
fine-tune Mistral 7B; Lee et al. (2025), "NV-Embed: Improved Techniques for Training LLMs as Generalist
Embedding Models", find mean pooling without the causal mask above the last token with it. Here 2 layers of
128 are trained from scratch, so that no cell has to unlearn a mask.
"""

from pathlib import Path

from experiments.reproduce import ablation
from experiments.reproduce.ablation import BUDGETS, Ablation, Cell, Judge
from experiments.reproduce.claims import Claim, Outcome

__all__ = ["BUDGETS", "run"]

SIZES = {"steps": 200, "batch": 128}
POOLINGS = {
    "mean": "mean",
    "last": "last token",
    "trainable": "trainable, over the last layer",
    "layers": "trainable, over all layers",
    "latent": "latent attention",
}
MEASURED = ("mean-bidirectional", "last-causal", "layers-bidirectional")
CELLS = tuple(
    Cell(
        f"{pooling}-{mask}",
        f"{what}; {mask}",
        given={"recipe": f"pool_{pooling}_{mask}", **SIZES},
        extra=f"{pooling}-{mask}" not in MEASURED,
    )
    for mask in ("bidirectional", "causal")
    for pooling, what in POOLINGS.items()
)


def run(budget: str, folder: Path) -> Outcome:
    return ablation.run(ABLATION, budget, folder)


def claims(judge: Judge) -> list[Claim]:
    return [
        judge.above(
            "pooling over all layers is above mean pooling",
            "multi-layers trainable pooling is the best in retrieval, significantly (Tang and Yang)",
            "layers-bidirectional",
            "mean-bidirectional",
        ),
        judge.above(
            "mean pooling without the causal mask is above the last token with it",
            "bidirectional attention with trainable pooling is above causal attention with the last token in "
            "retrieval (Tang and Yang); NV-Embed's table of ablations",
            "mean-bidirectional",
            "last-causal",
        ),
        judge.above(
            "latent attention is above mean pooling",
            "NV-Embed's table of ablations",
            "latent-bidirectional",
            "mean-bidirectional",
        ),
    ]


ABLATION = Ablation(
    title="Pooling and mask: Tang and Yang (2024), Lee et al. (2025, NV-Embed)",
    cells=CELLS,
    claims=claims,
    notes=[
        "2 layers of 128 from scratch, 200 steps of 128, where the papers fine-tune models of 7 billion "
        "parameters."
    ],
)
