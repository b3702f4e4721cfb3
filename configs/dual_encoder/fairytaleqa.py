"""FairytaleQA: a question on a children's story, find the section that answers it (Xu et al., 2022,
"Fantastic Questions and Where to Find Them: FairytaleQA").

    python -m experiments.train --config=configs/dual_encoder/fairytaleqa.py --workdir=runs/fairytaleqa

A dual encoder from scratch, BM25 with k1, b, title weight and stemming tuned on dev, and their fusion, from
this one command. The folder is in BEIR layout: a path, or a name under RETRIEVAX_DATA; docs/own_data.md says
how to make it. The stories of the test set are unseen in training.

Departures from `beir_folder`, each by the best MRR@10 on dev with it alone (one seed; 0.332 without any,
0.369 with all): eight questions of one story stay together in a batch, which makes them each other's hard
negatives (0.345); three in ten tokens are dropped in training (0.342); the title, which is the story's name,
counts no more than the text (0.356).
"""

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import beir_folder


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folder, steps."""
    given = parse_argument(argument, {"folder": "fairytaleqa", "steps": 150})
    config = beir_folder.get_config(f"folder={given.folder},steps={given.steps}")
    config.batch.neighbors = 8
    model = config.task.model
    model.query.encoder.token_dropout = model.document.encoder.token_dropout = 0.3
    model.document.encoder.segment_weights = (1.0, 1.0)
    return config
