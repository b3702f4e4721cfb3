"""MedQuAD: a medical question, find its answer among those of NIH web sites (Ben Abacha and Demner-Fushman,
2019, "A Question-Entailment Approach to Question Answering").

    python -m experiments.train --config=configs/cross_encoder/medquad.py --workdir=runs/medquad_cross_encoder

A cross-encoder from scratch, 1 layer of 64, that scores anew what BM25 finds; docs/cross_encoders.md says
what it reaches.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.cross_encoder import beir_folder


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folder, objective, steps."""
    given = parse_argument(argument, {"folder": "medquad", "objective": "pointwise", "steps": 400})
    return beir_folder.get_config(
        f"folder={given.folder},objective={given.objective},steps={given.steps},document=64"
    )
