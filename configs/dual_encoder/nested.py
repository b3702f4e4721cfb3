"""A small Transformer dual encoder on a part of a collection, from scratch: what generative retrieval is
compared with in `experiments.reproduce generative_scaling`, at the same encoder and training operations.

    python -m experiments.train --config=configs/dual_encoder/nested.py:documents=1000 --workdir=runs/dual

Collection, tokenizer, encoder and lengths are also those of the other side, generative_retrieval/scaling.py.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import beir_folder, parts

VOCAB_SIZE = 8_000
LENGTH = 32  # tokens of a document or query


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
    config.data = collection(given.folder, given.documents, test=given.test, dev=given.dev)
    config.tokenizer = tokenizer()
    config.text = parts.text(LENGTH, LENGTH, special_tokens=False)
    tower = parts.transformer_tower(VOCAB_SIZE, given.width, given.layers)
    config.task = parts.contrastive(dict(name="dual_encoder.towers.tied", tower=tower))
    config.optimizer = parts.adam(given.rate, given.steps, weight_decay=0.01)
    config.schedule = schedule(given.steps)
    config.evaluation.measures = ("hits@1", "hits@10", "mrr@10", "ndcg@10")
    return config


def collection(folder: str, documents: int, *, test: int, dev: int) -> dict:
    """A part of a folder in BEIR layout."""
    return dict(
        name="corpora.sources.nested.load",
        folder=folder,
        documents=documents,
        dev=dev,
        test=test,
        seed=0,
        allow_missing=False,
    )


def tokenizer() -> dict:
    """WordPiece, trained on the documents and training queries that are there."""
    return dict(
        name="corpora.tokenizer.train_wordpiece",
        vocab_size=VOCAB_SIZE,
        split_identifiers=False,
        punctuation=False,
    )


def schedule(steps: int) -> dict:
    """Evaluated and saved three times; the best MRR@10 on dev is kept."""
    return parts.schedule(steps, evaluations=3)
