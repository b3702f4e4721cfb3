"""A query generator from scratch: from the beginning of a document to a question that it answers (Nogueira et
al., 2019, "Document Expansion by Query Prediction").

    python -m experiments.train --config=configs/generative_retrieval/query_generator.py:folder=medquad \\
        --workdir=runs/qgen
    python -m experiments.generate_queries --workdir=runs/qgen --queries_per_document=5

A model of 2 + 2 layers that copies: each word is one of the vocabulary or one of the document's, see
`generative_retrieval.copying`. With copy=0 it cannot write names that it has not been trained on.

On MedQuAD, one seed: 2,963,905 parameters, 400 steps; test perplexity 1.23 a subword. BM25 finds the
document of a drawn query first for 29.2% of the 772 test documents (765 have no training question) and among
10 for 81.7%; for the test questions themselves for 30.2% and 86.6%.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import parts as common
from configs.generative_retrieval import parts

VOCAB_SIZE = 4_096


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folder, width, layers, length (of a document), batch, steps, copy (1 for a model that can
    copy words of the document)."""
    given = parse_argument(
        argument,
        {"folder": "medquad", "width": 192, "layers": 2, "length": 48, "batch": 64, "steps": 400, "copy": 1},
    )
    if given.copy not in (0, 1):
        raise ValueError(f"config argument copy={given.copy}; allowed: 0, 1")
    config = ml_collections.ConfigDict()
    config.family = "experiments.query_generator.Experiment"
    config.seed = 0
    config.data = dict(name="corpora.sources.beir_folder.load", folder=given.folder, allow_missing=False)
    config.tokenizer = dict(
        name="corpora.tokenizer.train_wordpiece", vocab_size=VOCAB_SIZE, split_identifiers=False
    )
    config.text = dict(document_length=given.length, query_length=32)
    config.batch = dict(batch_size=given.batch)
    model = parts.encoder_decoder(
        vocab_size=VOCAB_SIZE,
        docid_size=VOCAB_SIZE,
        width=given.width,
        encoder_layers=given.layers,
        decoder_layers=given.layers,
        dropout=0.0,
    )
    of = "generative_retrieval.query_generator"
    model["name"] = f"{of}.copying" if given.copy else f"{of}.shared_embedding"
    config.task = parts.spelling(model)
    config.optimizer = common.adam(1e-3, given.steps, weight_decay=0.01)
    config.mesh = parts.mesh()
    config.init_from = common.init_from()
    config.schedule = common.schedule(given.steps, evaluations=4) | dict(best_measure="dev/log_likelihood")
    config.evaluation = dict(
        train_split="train",
        dev_split="dev",
        test_split="test",
        batch_size=64,
        sampling=dict(temperature=1.0, top_k=10, top_p=1.0),
        bm25=dict(k1=0.9, b=0.4),
        measures=("hits@1", "hits@10"),
    )
    return config
