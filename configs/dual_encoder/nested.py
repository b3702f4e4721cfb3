"""A small Transformer dual encoder on a part of a collection, from scratch: what generative retrieval is
compared with in `experiments.reproduce generative_scaling`, at the same encoder and training operations.

    python -m experiments.train --config=configs/dual_encoder/nested.py:documents=1000 --workdir=runs/dual

Its collection, tokenizer, encoder and lengths are those of configs/generative_retrieval/scaling.py.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import beir_folder, parts
from configs.generative_retrieval import scaling


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folder, documents (0 for all), test and dev (queries of each that are kept), width, layers,
    steps, batch, rate (learning rate)."""
    given = parse_argument(
        argument,
        dict(
            folder="medquad", documents=4000, test=200, dev=200, width=128, layers=2, steps=430, batch=128,
            rate=1e-3,
        ),
    )  # fmt: skip
    config = beir_folder.get_config(
        f"folder={given.folder},encoder=transformer,steps={given.steps},batch={given.batch}"
    )
    config.data = scaling.collection(given.folder, given.documents, test=given.test, dev=given.dev)
    config.tokenizer = scaling.tokenizer()
    config.text = parts.text(scaling.LENGTH, scaling.LENGTH, special_tokens=False)
    tower = parts.transformer_tower(scaling.VOCAB_SIZE, given.width, given.layers)
    config.task = parts.contrastive(dict(name="dual_encoder.towers.tied", tower=tower))
    config.optimizer = parts.adam(given.rate, given.steps, weight_decay=0.01)
    config.schedule = scaling.schedule(given.steps)
    config.evaluation.measures = ("hits@1", "hits@10", "mrr@10", "ndcg@10")
    return config
