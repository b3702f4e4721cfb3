"""A generative retriever from scratch on any collection in BEIR layout with train, dev and test judgements.

    python -m experiments.train --config=configs/generative_retrieval/beir_folder.py:folder=fairytaleqa \
        --workdir=runs/gr
    python -m experiments.train --workdir=runs/control \
        --config=configs/generative_retrieval/beir_folder.py:folder=medquad,scheme=random

`folder` is a path, or a name under the folder that the environment variable RETRIEVAX_DATA points to. A small
encoder-decoder is trained on the beginnings of all documents and on the training queries, as in Tay et al.
(2022), "Transformer Memory as a Differentiable Search Index"; with `generated` on queries of a file besides.
docs/generative_retrieval.md has what it reaches.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import parts as encoder_parts
from configs.generative_retrieval import parts
from configs.language_model import parts as language_parts

DEFAULTS = dict(
    folder="", scheme="semantic", branching=30, vectors="", title_times=3, capacity=20_000, generated="",
    span=0, vocab=3_000, length=24, width=128, layers=2, decoder_layers=2, dropout=0.0, steps=1_200,
    batch=64, rate=2e-3, beams=10, penalty=0.0, copy=0,
)  # fmt: skip


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folder; scheme (see parts.SCHEMES), branching (clusters of a node, and symbols of random and
    quantized ids), vectors (a dual encoder's run that documents are clustered by; "" for TF-IDF), title_times
    (how often titles count there), capacity (documents there may ever be, for atomic ids); generated (a file
    of queries), span (tokens of random spans; 0 for none); vocab, length (tokens of a text), width, layers,
    decoder_layers, dropout, copy (1 for a model that copies words of the query, for ids that are words);
    steps, batch, rate (the peak learning rate); beams, penalty (of length)."""
    return made(parse_argument(argument, DEFAULTS))


def made(given: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the config of arguments with the keys of DEFAULTS."""
    for argument, schemes in (("vectors", parts.OF_VECTORS), ("copy", parts.OF_WORDS)):
        if given[argument] and given.scheme not in schemes:
            raise ValueError(
                f"config argument {argument}={given[argument]!r} with scheme={given.scheme!r}; allowed: "
                f"{argument} with {', '.join(schemes)}"
            )
    scheme, docid_size, docid_length = parts.scheme(
        given.scheme, vocab_size=given.vocab, capacity=given.capacity, branching=given.branching
    )
    of = "generative_retrieval.vectors"
    config = ml_collections.ConfigDict()
    config.family = "experiments.generative.Experiment"
    config.seed = 0
    config.data = language_parts.beir(given.folder)
    config.tokenizer = dict(
        name="corpora.tokenizer.train_wordpiece",
        vocab_size=given.vocab,
        split_identifiers=False,
        punctuation=False,
    )
    config.text = dict(length=given.length)
    config.docids = dict(
        scheme=scheme,
        vectors=dict(name=f"{of}.of_run", run=given.vectors)
        if given.vectors
        else dict(name=f"{of}.latent", width=128, title_times=given.title_times),
        extends="",
        removed="",
    )
    config.plan = dict(docid_length=docid_length)
    config.indexing = parts.indexing(given.generated, span=given.span)
    config.batch = dict(batch_size=given.batch)
    model = parts.encoder_decoder(
        vocab_size=given.vocab,
        docid_size=docid_size,
        width=given.width,
        encoder_layers=given.layers,
        decoder_layers=given.decoder_layers,
        dropout=given.dropout,
    )
    if given.copy:
        model |= dict(name="generative_retrieval.copying.CopyingEncoderDecoder", first=1)
    config.task = parts.spelling(model)
    config.optimizer = encoder_parts.adam(given.rate, given.steps, weight_decay=0.01)
    config.mesh = parts.mesh()
    config.init_from = encoder_parts.init_from()
    config.schedule = encoder_parts.schedule(given.steps, evaluations=4) | dict(best_measure="dev/hits@10")
    config.evaluation = parts.evaluation(beams=given.beams, results=10, length_penalty=given.penalty)
    return config
