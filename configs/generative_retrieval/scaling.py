"""Cells of the scaling study of Pradeep et al. (2023), "How Does Generative Retrieval Scale to Millions of
Passages?", at CPU budget: `experiments.reproduce generative_scaling` says which, and what came of them.

    python -m experiments.train --workdir=runs/gr \\
        --config=configs/generative_retrieval/scaling.py:documents=1000

A collection's parts lie within one another and are judged by the same queries (corpora.sources.nested). The
model is a small Transformer from scratch, where the paper begins with T5. `data` names what is mapped to
docids, joined by +: documents (their first tokens), generated (queries of the file `generated`) and queries.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import nested
from configs.dual_encoder import parts as encoder_parts
from configs.generative_retrieval import parts

CAPACITY = 16_000  # documents there may be with atomic ids
SOURCES = dict(documents="first_tokens", generated="generated", queries="queries")


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folder, documents (0 for all), test and dev (queries of each that are kept), scheme (see
    parts.SCHEMES), vectors (a dual encoder's run, for schemes that need vectors), data, generated, width,
    layers (of encoder and decoder alike), prefix_aware (layers of the adaptor, 0 for a plain decoder),
    consistency (its weight, 0 for none), steps, batch, rate (learning rate)."""
    given = parse_argument(
        argument,
        dict(
            folder="medquad", documents=4000, test=200, dev=200, scheme="atomic", vectors="",
            data="documents+queries", generated="", width=128, layers=2, prefix_aware=0, consistency=0.0,
            steps=700, batch=128, rate=1e-3,
        ),
    )  # fmt: skip
    config = ml_collections.ConfigDict()
    config.family = "experiments.generative.Experiment"
    config.seed = 0
    config.data = nested.collection(given.folder, given.documents, test=given.test, dev=given.dev)
    config.tokenizer = nested.tokenizer()
    config.text = dict(length=nested.LENGTH)
    scheme, docid_size, docid_length = parts.scheme(
        given.scheme, vocab_size=nested.VOCAB_SIZE, capacity=given.documents or CAPACITY
    )
    vectors = dict(name="generative_retrieval.vectors.of_run", run=given.vectors) if given.vectors else None
    config.docids = dict(scheme=scheme, vectors=vectors, extends="", removed="")
    config.plan = dict(docid_length=docid_length)
    config.indexing = dict(sources=sources(given.data, given.generated), weights={}, replay=0.0)
    config.batch = dict(batch_size=given.batch)
    model = parts.encoder_decoder(
        vocab_size=nested.VOCAB_SIZE,
        docid_size=docid_size,
        width=given.width,
        encoder_layers=given.layers,
        decoder_layers=given.layers,
        dropout=0.1,
    )
    if given.prefix_aware:
        model |= prefix_aware(model["decoder"], given.prefix_aware)
    config.task = parts.spelling(model)
    if given.consistency:
        config.task.consistency = dict(
            name="generative_retrieval.consistency.Consistency", weight=given.consistency
        )
    config.optimizer = encoder_parts.adam(given.rate, given.steps, weight_decay=0.01)
    config.mesh = parts.mesh()
    config.init_from = encoder_parts.init_from()
    config.schedule = nested.schedule(given.steps)
    config.evaluation = parts.evaluation(beams=20)
    # BM25 is tuned once for each part, in the run of its dual encoder.
    config.evaluation.bm25_grid.update(k1=(0.9,), b=(0.4,), title_weight=(1.0,))
    return config


def sources(data: str, generated: str) -> dict:
    """What is mapped to docids."""
    names = data.split("+")
    if unknown := set(names) - set(SOURCES):
        raise ValueError(
            f"config argument data={data!r} has {', '.join(sorted(unknown))}; allowed: {', '.join(SOURCES)}, "
            "joined by +"
        )
    if ("generated" in names) != bool(generated):
        raise ValueError(
            f"config argument data={data!r} and generated={generated!r}: `generated` in data needs the file "
            "that it is read from, and nothing else does"
        )
    specs = {name: dict(name=f"generative_retrieval.indexing.{SOURCES[name]}") for name in names}
    if generated:
        specs["generated"]["file"] = generated
    return specs


def prefix_aware(decoder: dict, num_layers: int) -> dict:
    """What makes an encoder-decoder the Neural Corpus Indexer's; the adaptor's layers are the decoder's."""
    return dict(
        name="generative_retrieval.pawa.PrefixAware",
        adaptor_block=decoder["block"],
        adaptor_layers=num_layers,
        adaptor_norm=decoder["norm"],
    )
