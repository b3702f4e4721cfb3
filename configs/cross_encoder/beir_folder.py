"""A cross-encoder from scratch on any collection in BEIR layout that has train, dev and test judgements.

    python -m experiments.train --config=configs/cross_encoder/beir_folder.py:folder=fairytaleqa \
        --workdir=runs/cross_encoder

A small Transformer that reads query and document together and scores the documents that BM25 finds; it is a
teacher of dual encoders and a judge of their negatives too, see docs/cross_encoders.md. `folder` is a path,
or a name under the folder that the environment variable RETRIEVAX_DATA points to. The loss is
`objective=pointwise` (Nogueira and Cho, 2019), whose scores are probabilities, or `localized_contrastive`
(Gao et al., 2021).
"""

import ml_collections

from configs.arguments import parse_argument
from configs.cross_encoder import parts
from configs.dual_encoder import parts as common

VOCAB_SIZE = 16_000


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folder, objective (pointwise or localized_contrastive), steps, batch, negatives, width,
    layers, document (its length), depth (documents of a query that are scored anew)."""
    given = parse_argument(
        argument,
        {
            "folder": "",
            "objective": "pointwise",
            "steps": 400,
            "batch": 64,
            "negatives": 3,
            "width": 64,
            "layers": 1,
            "document": 112,
            "depth": 100,
        },
    )
    stems = dict(name="index.lexical.Analyzer", stop_words="english", stemmer="porter")
    bm25 = dict(k1=0.9, b=0.4, title_weight=1.0, analyzer=stems)
    config = ml_collections.ConfigDict()
    config.family = "experiments.cross_encoder.Experiment"
    config.seed = 0
    config.data = dict(name="corpora.sources.beir_folder.load", folder=given.folder, allow_missing=False)
    config.tokenizer = dict(
        name="corpora.tokenizer.train_wordpiece",
        vocab_size=VOCAB_SIZE,
        split_identifiers=False,
        punctuation=False,
    )
    config.text = parts.text(24, given.document)
    config.batch = dict(
        batch_size=given.batch,
        negatives_per_query=given.negatives,
        negatives=dict(name="dual_encoder.negatives.bm25", count=30, **bm25),
    )
    config.task = parts.ranking(parts.transformer(VOCAB_SIZE, given.width, given.layers), given.objective)
    config.optimizer = common.adam(1e-3, given.steps, weight_decay=0.01)
    config.mesh = parts.mesh()
    config.init_from = common.init_from()
    config.schedule = common.schedule(given.steps, evaluations=5)
    config.evaluation = common.evaluation(
        analyzers=dict(words=dict(name="index.lexical.Analyzer", stop_words="english"), stems=stems),
        k1=(0.9, 1.5, 3.0),
        b=(0.4, 0.75, 0.9),
        title_weight=(1.0, 2.0, 4.0),
        plain="words",
    )
    config.evaluation.update(dict(depth=given.depth, dev_depth=20, dev_bm25=bm25))
    return config
