"""A dual encoder from scratch on training triples by text, with the negatives that they list.

A line of the file is a query, a relevant text and a text that is not relevant, with tabs between, as in
`triples.train.small.tsv` of MS MARCO (see corpora.sources.triples):

    python -m experiments.train --workdir=runs/triples \
        --config=configs/dual_encoder/triples.py:file=/data/triples.train.small.tsv,steps=5000

`dev` and `test` are the fractions of the queries that are held out. `negatives` says how many of a query's
listed negatives a step draws; with `negatives=0` queries have only each other's documents. `limit` reads so
many triples from the start of a large file. Everything else is as in beir_folder.py: no paper is reproduced
here, and what a run reaches is its own table.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import beir_folder


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: file, dev, test, limit, encoder (bag or transformer), steps, batch, negatives."""
    given = parse_argument(
        argument,
        {
            "file": "",
            "dev": 0.05,
            "test": 0.05,
            "limit": 0,
            "encoder": "bag",
            "steps": 150,
            "batch": 512,
            "negatives": 1,
        },
    )
    config = beir_folder.get_config(
        f"encoder={given.encoder},steps={given.steps},batch={given.batch},negatives={given.negatives}"
    )
    config.data = dict(
        name="corpora.sources.triples.load",
        file=given.file,
        dev=given.dev,
        test=given.test,
        seed=0,
        limit=given.limit,
    )
    if given.negatives:
        config.batch.negatives = dict(name="dual_encoder.negatives.judged", count=30)
    return config
