"""Documents added to a trained generative retriever: they get ids in the same scheme, the others keep theirs,
and the model is trained on the added ones while earlier ones are replayed.

    python -m experiments.train --workdir=runs/gr2 \
        --config=configs/generative_retrieval/continual.py:run=runs/gr,documents=more
    python -m experiments.search --workdir=runs/gr2 --query="what causes gout"

Mehta et al. (2023), "DSI++: Updating Transformer Memory with New Documents", replay queries that a model
generates; here it is whatever the earlier run was trained on. With 1,000 documents added to 14,790 of
MedQuAD, in under two minutes on one core, Hits@10 of earlier documents went from 0.926 to 0.929 (to 0.901
without replay), of added ones to 0.985: docs/generative_retrieval.md.
"""

import json
from pathlib import Path

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import parts


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: run (the trained one), documents (a corpus.jsonl, or a folder in BEIR layout), replay (share
    of a batch's rows that are of earlier documents), steps, rate (peak learning rate), batch, generated (a
    file of queries for the added documents and the earlier ones; "" for the sources of the run)."""
    given = parse_argument(
        argument,
        dict(run="runs/gr", documents="", replay=0.5, steps=300, rate=1e-3, batch=64, generated=""),
    )
    file = Path(given.run) / "config.json"
    if not file.is_file():
        raise ValueError(f"config argument run={given.run!r}: there is no {file}; train one first")
    config = ml_collections.ConfigDict(json.loads(file.read_text()))
    if config.get("family") != "experiments.generative.Experiment":
        raise ValueError(f"config argument run={given.run!r}: it is no run of a generative retriever")
    config.data = dict(name="corpora.extended.load", of=config.data.to_dict(), documents=given.documents)
    config.tokenizer = ml_collections.ConfigDict(
        dict(name="corpora.tokenizer.load", path=str(Path(given.run) / "tokenizer.json"))
    )
    config.docids.extends = given.run
    config.init_from = dict(run=given.run, rules=())
    config.indexing.replay = given.replay
    if given.generated:
        config.indexing.sources.generated = dict(
            name="generative_retrieval.indexing.generated", file=given.generated
        )
    config.batch.batch_size = given.batch
    config.optimizer = parts.adam(given.rate, given.steps, weight_decay=0.01)
    config.schedule = parts.schedule(given.steps, evaluations=5) | dict(best_measure="dev/both/hits@10")
    return config
