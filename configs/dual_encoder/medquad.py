"""MedQuAD: a medical question, find its answer among those of NIH web sites (Ben Abacha and Demner-Fushman,
2019, "A Question-Entailment Approach to Question Answering").

    python -m experiments.train --config=configs/dual_encoder/medquad.py --workdir=runs/medquad

A dual encoder from scratch, BM25 with k1, b, title weight and stemming tuned on dev, and their fusion, from
this one command. The folder is in BEIR layout: a path, or a name under RETRIEVAX_DATA; docs/own_data.md says
how to make it.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import beir_folder


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folder, steps."""
    given = parse_argument(argument, {"folder": "medquad", "steps": 150})
    return beir_folder.get_config(f"folder={given.folder},steps={given.steps}")
