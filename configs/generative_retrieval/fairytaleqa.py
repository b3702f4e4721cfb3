"""FairytaleQA: a question on a children's story to the id of the section that answers it, spelled by a small
Transformer from scratch (Xu et al., 2022, "Fantastic Questions and Where to Find Them: FairytaleQA").

    python -m experiments.train --config=configs/generative_retrieval/fairytaleqa.py --workdir=runs/fairy

Titles tell little here: 4,094 sections share 278 of them, the stories' names. Ids are paths in a tree of
clusters. The stories of the test set have no training question.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.generative_retrieval import beir_folder


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: the keys of `beir_folder`."""
    own = dict(folder="fairytaleqa", scheme="semantic", title_times=1, length=64, capacity=5_000)
    return beir_folder.made(parse_argument(argument, beir_folder.DEFAULTS | own))
