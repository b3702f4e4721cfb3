"""FairytaleQA: a question on a children's story, find the section that answers it (Xu et al., 2022,
"Fantastic Questions and Where to Find Them: FairytaleQA").

    python -m experiments.train --config=configs/dual_encoder/fairytaleqa.py --workdir=runs/fairytaleqa

A dual encoder from scratch, BM25 with k1, b, title weight and stemming tuned on dev, and their fusion, from
this one command. The folder is in BEIR layout: a path, or a name under RETRIEVAX_DATA; `python -m
corpora.convert fairytaleqa` makes it. The stories of the test set are unseen in training.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import beir_folder


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folder, steps."""
    given = parse_argument(argument, {"folder": "fairytaleqa", "steps": 150})
    return beir_folder.get_config(f"folder={given.folder},steps={given.steps}")
