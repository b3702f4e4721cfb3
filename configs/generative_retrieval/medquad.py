"""MedQuAD: a medical question to the id of its answer, spelled by a small Transformer from scratch (Ben
Abacha and Demner-Fushman, 2019, "A Question-Entailment Approach to Question Answering").

    python -m experiments.train --config=configs/generative_retrieval/medquad.py --workdir=runs/gr
    python -m experiments.search --workdir=runs/gr --query="what are the symptoms of lupus"

Ids are the documents' titles, which name what the questions ask about: De Cao et al. (2021), "Autoregressive
Entity Retrieval". 15,790 documents share 5,123 titles; a number tells those of one title apart. The model can
copy a title from the question (See et al., 2017), as rare names are not learned in a few minutes. Other
schemes are an argument away, `:scheme=random` among them, the control; they are spelled without copying.

Test Hits@10 0.973 and MRR@10 0.711, BM25 0.923 and 0.567, the dual encoder of configs/dual_encoder/medquad.py
0.976 and 0.808 with as much computation. Three and a half minutes of training on one core of an AMD EPYC.
docs/generative_retrieval.md has it without copying, and with generated queries.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.generative_retrieval import beir_folder


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: the keys of `beir_folder`; penalty is 0.5 and copy 1 by default for titles, for which they
    were chosen, and 0 for other ids."""
    defaults = beir_folder.DEFAULTS | dict(
        folder="medquad", scheme="titles", length=16, steps=1_000, rate=4e-3
    )
    if parse_argument(argument, defaults).scheme == "titles":
        defaults |= dict(penalty=0.5, copy=1)
    return beir_folder.made(parse_argument(argument, defaults))
