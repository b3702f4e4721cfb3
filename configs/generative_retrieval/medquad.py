"""MedQuAD: a medical question to the id of its answer, spelled by a small Transformer from scratch (Ben
Abacha and Demner-Fushman, 2019, "A Question-Entailment Approach to Question Answering").

    python -m experiments.train --config=configs/generative_retrieval/medquad.py --workdir=runs/gr
    python -m experiments.search --workdir=runs/gr --query="what are the symptoms of lupus"

Ids are the documents' titles, which name what the questions ask about: De Cao et al. (2021), "Autoregressive
Entity Retrieval". 15,790 documents share 5,123 titles; a number tells those of one title apart. Other schemes
are an argument away, `:scheme=random` among them, the control.

Test Hits@10 0.927 and MRR@10 0.640 (without the length penalty, which was chosen later), BM25 0.923 and
0.567, in two and a half minutes of training on one core of an AMD EPYC; more in docs/generative_retrieval.md.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.generative_retrieval import beir_folder


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: the keys of `beir_folder`; penalty is 0.5 by default for titles, for which it was chosen, and
    0 for other ids."""
    defaults = beir_folder.DEFAULTS | dict(folder="medquad", scheme="titles", length=16)
    of_titles = parse_argument(argument, defaults).scheme == "titles"
    return beir_folder.made(parse_argument(argument, defaults | dict(penalty=0.5 if of_titles else 0.0)))
