"""Generative retrieval over MS MARCO at 100 thousand, 1 million and 8.8 million passages, for pods of TPUs:
rows of Pradeep et al. (2023), "How Does Generative Retrieval Scale to Millions of Passages?".

    python -m experiments.plan --topology=v5e:8x8 --config=configs/pod/generative.py
    python -m experiments.plan --topology=v5e:8x8 --config=configs/pod/generative.py:scheme=naive,size=xl
    python -m experiments.train --workdir=runs/pod \\
        --config=configs/pod/generative.py:folder=/data/msmarco,documents=100000,generated=/data/queries.jsonl

Their MRR@10 on the dev queries, times 100:

    ids, model        100k   1M    8.8M
    atomic, T5-base   80.3  55.8   24.2
    naive, T5-base    77.7  48.2   13.3
    naive, T5-XL                   26.7

T5 v1.1 (Raffel et al., 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer") of either size, in bfloat16, maps generated queries (40 a passage in the paper, by docT5query)
to docids: batches of 512, 128 tokens, a rate of 1e-3 with a warm-up of 10,000 steps (100,000 for atomic ids),
dropout 0.1, 40 beams; 1 million steps at 100k, up to 9 million beyond. Adafactor is T5's. Parameters begin at
random unless `config.init_from` names a run; and docids have symbols of their own, where the paper's naive
ones are words of T5's.

`folder` is MS MARCO in BEIR layout: tested on `dev`, the checkpoint chosen on `test`. The parts lie within
one another, passages with a judgement first.

Atomic ids of 8.8 million passages are a table of 8,841,984 rows, with as many logits for each query. Rows and
logits lie in parts along `fsdp`. The batch is split along `fsdp` too, so for the logits what the decoder made
of all queries, 512 vectors, is gathered; the table stays where it is.

Planned with libtpu 0.0.42, jax 0.10.2 (compiled facts and a roofline, no timing; docs/planning.md):

    ids, model, passages   slice    needed a chip      compute  memory  interconnect  at least  best MFU
    atomic, base, 100k     v5e:4x4  0.48 of 15.75 GiB  16.3 ms  6.0 ms  24.5 ms       24.5 ms   52.4%
    atomic, base, 8.8M     v5e:8x8  1.68 of 15.75 GiB   5.7 ms 10.1 ms  40.7 ms       40.7 ms   11.9%
"""

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import parts as common
from configs.generative_retrieval import parts

VOCAB_SIZE = 32_128
LENGTH = 128  # tokens of a text
PASSAGES = 8_841_823
_PARTS = 256  # what the rows of an atomic table divide by: any mesh up to a pod
SIZES = {
    "base": dict(width=768, layers=12, heads=12, hidden=2048),
    "xl": dict(width=2048, layers=24, heads=32, hidden=5120),
}


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folder, documents (0 for all), scheme (atomic or naive), size (base or xl), generated (the
    file of queries), steps, batch, fsdp (size of the mesh axis; -1 for all chips)."""
    given = parse_argument(
        argument,
        dict(
            folder="", documents=0, scheme="atomic", size="base", generated="queries.jsonl", steps=1_000_000,
            batch=512, fsdp=-1,
        ),
    )  # fmt: skip
    for field, allowed in (("scheme", ("atomic", "naive")), ("size", tuple(SIZES))):
        if given[field] not in allowed:
            raise ValueError(f"config argument {field}={given[field]!r}; allowed: {', '.join(allowed)}")
    passages = given.documents or PASSAGES
    rows = -(-(passages + 1) // _PARTS) * _PARTS
    scheme, docid_size, _ = parts.scheme(given.scheme, vocab_size=VOCAB_SIZE, capacity=rows - 1)
    atomic = given.scheme == "atomic"
    config = ml_collections.ConfigDict()
    config.family = "experiments.generative.Experiment"
    config.seed = 0
    config.data = dict(
        name="corpora.sources.nested.load",
        folder=given.folder,
        documents=given.documents,
        dev=0,
        test=0,
        judged_first=True,
        seed=0,
        allow_missing=False,
    )
    config.tokenizer = dict(
        name="corpora.tokenizer.train_wordpiece", vocab_size=VOCAB_SIZE, split_identifiers=False
    )
    config.text = dict(length=LENGTH)
    config.docids = dict(scheme=scheme, vectors=None, extends="", removed="")
    config.plan = dict(docid_length=1 if atomic else len(str(passages - 1)) + 1)
    config.indexing = dict(
        sources=dict(generated=dict(name="generative_retrieval.indexing.generated", file=given.generated)),
        weights={},
        replay=0.0,
    )
    config.batch = dict(batch_size=given.batch)
    config.task = parts.spelling(t5(docid_size, **SIZES[given.size]))
    config.optimizer = dict(
        name="optax.adafactor",
        learning_rate=dict(
            name="training.schedules.linear",
            peak=1e-3,
            warmup_steps=min(100_000 if atomic else 10_000, given.steps // 10),
            total_steps=given.steps,
        ),
    )
    config.mesh = mesh(docid_table=atomic)
    config.mesh.axes.update(data=1 if given.fsdp == -1 else -1, fsdp=given.fsdp)
    config.init_from = common.init_from()
    config.schedule = common.schedule(given.steps, evaluations=20) | dict(best_measure="dev/mrr@10")
    config.evaluation = parts.evaluation(beams=40) | dict(dev_split="test", test_split="dev")
    return config


def t5(docid_size: int, *, width: int, layers: int, heads: int, hidden: int) -> dict:
    """T5 v1.1: pre-norm, GEGLU, relative positions; the decoder's one table is that of the docids."""
    norm = dict(name="backbones.norms.RMSNorm")
    feed_forward = dict(name="moe.feed_forward.Gated", width=hidden, activation=dict(name="jax.nn.gelu"))
    remat = dict(name="backbones.remat.save_nothing")
    cached = dict(name="backbones.cached_attention.CachedAttention", heads=heads)
    shared = dict(num_layers=layers, norm=norm, dropout=0.1, remat=remat, dtype="bfloat16")
    block = dict(feed_forward=feed_forward, norm=norm, dropout=0.1)
    return dict(
        name="generative_retrieval.models.EncoderDecoder",
        encoder=dict(
            name="backbones.encoder.TransformerEncoder",
            embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=VOCAB_SIZE, width=width),
            block=dict(
                name="backbones.blocks.PreNorm",
                attention=dict(name="backbones.attention.SelfAttention", heads=heads),
                **block,
            ),
            bias=dict(name="backbones.relative.RelativeBias", heads=heads),
            **shared,
        ),
        decoder=dict(
            name="backbones.decoder.TransformerDecoder",
            embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=docid_size, width=width),
            block=dict(
                name="backbones.decoder_blocks.PreNorm", attention=cached, cross_attention=cached, **block
            ),
            bias=dict(name="backbones.relative.RelativeBias", heads=heads, bidirectional=False),
            **shared,
        ),
    )


def mesh(*, docid_table: bool) -> ml_collections.ConfigDict:
    """As `parts.mesh`, with the docids' table and their logits in parts along `fsdp`, or whole where they are
    few."""
    layout = parts.mesh()
    rows = ("fsdp", None) if docid_table else (None, None)
    logits = (("replica", "data"), None, "fsdp") if docid_table else ("batch", None, None)
    parameters = (("decoder/embed/table", rows), *layout["parameters"])
    activations = [rule for rule in layout["activations"] if rule[0] not in ("table", "logits")]
    tables = (("table", rows),) if docid_table else (("table", (None, None)),)
    if docid_table:  # the table of words, too, is looked up by rows
        parameters = (("embed/table", rows), *layout["parameters"][1:])
    return ml_collections.ConfigDict(
        layout | dict(parameters=parameters, activations=(*tables, ("logits", logits), *activations))
    )
