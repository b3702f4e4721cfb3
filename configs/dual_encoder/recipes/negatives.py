"""Recipes of who mines the negatives, and what is made of them.

Each is `(config, given) -> None`, see configs/dual_encoder/recipe.py. What mining left out, and why, is
printed and kept in the run's negatives.json.
"""

from typing import Any

import ml_collections

from configs.arguments import needed_run
from configs.dual_encoder import parts

COUNT = 30  # negatives of a query, of which each step draws one
STEMS = dict(name="index.lexical.Analyzer", stop_words="english", stemmer="porter")


def bm25(config: ml_collections.ConfigDict, given: Any) -> None:
    """One of the 30 documents that BM25 ranks highest, anew at each step (Karpukhin et al., 2020)."""
    _listed(config, given, _bm25())


def bm25_skip(config: ml_collections.ConfigDict, given: Any) -> None:
    """As `bm25`, without the first 5 ranks and copies of the positive, which may be relevant unjudged."""
    same_text = dict(name="dual_encoder.negative_filters.same_text")
    _listed(config, given, _bm25(skip=5, depth=60, filters=[same_text]))


def mined(config: ml_collections.ConfigDict, given: Any) -> None:
    """Static negatives of the dual encoder of `run`, without its parameters."""
    _listed(config, given, dict(name="dual_encoder.negatives.mined", run=needed_run(given), count=COUNT))


def positive_aware(config: ml_collections.ConfigDict, given: Any) -> None:
    """As `mined`, without what `run` scores above 0.95 of the positive's score (Moreira et al., 2024)."""
    scorer = dict(name="dual_encoder.scorers.trained", run=needed_run(given))
    near = dict(name="dual_encoder.negative_filters.near_positive", scorer=scorer, share=0.95)
    mined = dict(
        name="dual_encoder.negatives.mined", run=needed_run(given), count=COUNT, depth=100, filters=[near]
    )
    _listed(config, given, mined)


def star(config: ml_collections.ConfigDict, given: Any) -> None:
    """Static negatives of `run`, whose parameters are gone on with, beside those in the batch (after Zhan et
    al., 2021, STAR)."""
    _listed(config, given, dict(name="dual_encoder.negatives.mined", run=needed_run(given), count=200))
    config.init_from.run = needed_run(given)


def refreshed(config: ml_collections.ConfigDict, given: Any) -> None:
    """BM25's negatives at first, then those of the model in training, five times anew (Xiong et al., 2021,
    ANCE)."""
    _listed(config, given, _bm25())
    config.batch.refresh = dict(name="dual_encoder.negatives.nearest", count=COUNT)
    config.batch.refresh_every = max(1, given.steps // 6)


def unified(config: ml_collections.ConfigDict, given: Any) -> None:
    """BM25's negatives and those of `run` together (Tang et al., 2022, DPTDR)."""
    of_run = dict(name="dual_encoder.negatives.mined", run=needed_run(given), count=COUNT)
    _listed(
        config, given, dict(name="dual_encoder.negatives.union", count=2 * COUNT, sources=[_bm25(), of_run])
    )


def dynamic(config: ml_collections.ConfigDict, given: Any) -> None:
    """ADORE: the documents of `run` frozen, its query tower trained on what it finds in the whole corpus
    (Zhan et al., 2021)."""
    separated(config)
    config.init_from.run = needed_run(given)
    base = config.task.to_dict() | dict(measures={})
    config.task = dict(name="dual_encoder.dynamic.Dynamic", base=base, negatives=200, cut=200)
    config.batch.batch_size = min(given.batch, 128)
    config.optimizer = parts.adam(1e-3, given.steps)


def momentum(config: ml_collections.ConfigDict, given: Any) -> None:
    """A queue of 16 batches, encoded by a moving average of one tower for both sides (He et al., 2020, MoCo;
    Izacard et al., 2022, Contriever)."""
    model = config.task.model
    if model.name == "dual_encoder.towers.shared_embedding":
        config.task.model = dict(name="dual_encoder.towers.tied", tower=model.document)
    objective = dict(name="dual_encoder.objectives.softmax.info_nce")
    base = config.task.to_dict() | dict(objective=objective)
    config.task = dict(
        name="dual_encoder.momentum.Momentum",
        base=base,
        queue=16 * given.batch,
        momentum=0.99,
        in_batch=False,
    )


def separated(config: ml_collections.ConfigDict) -> None:
    """Towers of their own for queries and documents, which begin as copies of what those of `init_from`
    share."""
    model = config.task.model
    if model.name == "dual_encoder.towers.shared_embedding":
        model.name = "dual_encoder.towers.separate"
        path = "query/encoder/embed/"
    else:
        config.task.model = dict(name="dual_encoder.towers.separate", query=model.tower, document=model.tower)
        path = "query/"
    config.init_from.rules = (
        (f"^model/{path}", (f"model/{path}", f"model/{path}".replace("query", "document"))),
    )


def _bm25(**more: Any) -> dict:
    settings = dict(count=COUNT, k1=0.9, b=0.4, title_weight=1.0, analyzer=STEMS)
    return dict(name="dual_encoder.negatives.bm25", **settings, **more)


def _listed(config: ml_collections.ConfigDict, given: Any, miner: dict) -> None:
    config.batch.negatives_per_query = given.negatives or 1
    config.batch.negatives = miner


RECIPES = {
    "bm25": bm25,
    "bm25_skip": bm25_skip,
    "mined": mined,
    "positive_aware": positive_aware,
    "star": star,
    "refreshed": refreshed,
    "unified": unified,
    "dynamic": dynamic,
    "momentum": momentum,
}
