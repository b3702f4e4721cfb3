"""Recipes that learn from what another model says; each `(config, given) -> None`, see
configs/dual_encoder/recipe.py. `run` is the teacher's run directory, docs/cross_encoders.md says how to train
a cross-encoder."""

from typing import Any

import ml_collections

from configs.arguments import needed_run
from configs.dual_encoder import beir_folder, parts
from configs.dual_encoder.recipes import small
from configs.dual_encoder.recipes.negatives import STEMS, separated

LISTED = 4  # negatives of a query that a teacher and a student compare at each step
SCORED = 8  # of so many that the teacher scores; a cross-encoder takes its time
BM25 = dict(k1=0.9, b=0.4, title_weight=1.0, analyzer=STEMS)


def cross_encoder_kl(config: ml_collections.ConfigDict, given: Any) -> None:
    """KL to the cross-encoder of `run` over listed documents, with InfoNCE (Tamber et al., 2025)."""
    _taught(config, given, _cross_encoder(given), dict(name="training.ranking.kl"), contrastive_weight=0.1)


def cross_encoder_margin_mse(config: ml_collections.ConfigDict, given: Any) -> None:
    """The margins of the cross-encoder of `run`; vectors may have any length (Hofstätter et al., 2020)."""
    _taught(config, given, _cross_encoder(given), dict(name="training.ranking.margin_mse"))
    config.task.update(temperature=1.0, learn_temperature=False)
    model = config.task.model
    for tower in ("tower",) if "tower" in model else ("query", "document"):
        model[tower].normalize = False


def dual_encoder_kl(config: ml_collections.ConfigDict, given: Any) -> None:
    """KL to the dual encoder of `run`, at a temperature of 0.05, over listed documents, with InfoNCE."""
    teacher = dict(name="dual_encoder.scorers.trained", run=needed_run(given))
    loss = dict(name="training.ranking.kl", temperature=0.05)
    _taught(config, given, teacher, loss, contrastive_weight=0.1)


def bm25_kl(config: ml_collections.ConfigDict, given: Any) -> None:
    """KL to BM25's scores, at a temperature of 4, over listed documents, with InfoNCE."""
    teacher = dict(name="dual_encoder.scorers.bm25", **BM25)
    loss = dict(name="training.ranking.kl", temperature=4.0)
    _taught(config, given, teacher, loss, contrastive_weight=0.1)


def denoised(config: ml_collections.ConfigDict, given: Any) -> None:
    """BM25's negatives that the cross-encoder of `run`, trained pointwise, finds relevant with a probability
    below 0.1 (Qu et al., 2021, RocketQA)."""
    config.batch.negatives_per_query = given.negatives or 1
    config.batch.negatives = dict(
        name="dual_encoder.denoised.denoised",
        count=SCORED,
        source=dict(name="dual_encoder.negatives.bm25", count=2 * SCORED, **BM25),
        judge=dict(name="dual_encoder.scorers.probability", scorer=_cross_encoder(given)),
        below=0.1,
    )


def query_distillation(config: ml_collections.ConfigDict, given: Any) -> None:
    """A query tower of a quarter of the width that imitates the one of `run`, trained from this config with
    `recipe=plain`, whose document tower stays (Huang et al., 2024, ScalingNote)."""
    _of_teacher(config, given)
    width = config.task.model.document.encoder.embed.width
    if given.encoder == "bag":
        query = parts.bag_tower(beir_folder.VOCAB_SIZE, width // 4)
    else:
        query = parts.transformer_tower(beir_folder.VOCAB_SIZE, width // 4, 1)
    config.task.model.query = query | dict(head=dict(name="flax.linen.Dense", features=width, use_bias=False))
    # Of the teacher's query tower nothing is taken but what its document tower shares.
    shared = [
        (path, [copy for copy in copies if "document" in copy]) for path, copies in config.init_from.rules
    ]
    others = [] if any(path == "^model/query/" for path, _ in shared) else [("^model/query/", None)]
    config.init_from.rules = (*shared, *others)
    config.batch.targets = dict(name="dual_encoder.targets.queries", run=needed_run(given))
    config.task.objective = dict(
        name="dual_encoder.objectives.imitation.imitated", mse_weight=1.0, cosine_weight=1.0
    )
    config.task.measures = {}


def softqe(config: ml_collections.ConfigDict, given: Any) -> None:
    """The query tower of `run` learns the vectors of expanded queries, with InfoNCE, beside its frozen
    documents; name the file as `--config.batch.targets.expansions` (Pimpalkhute et al., 2024, SoftQE)."""
    _of_teacher(config, given)
    config.batch.targets = dict(name="dual_encoder.targets.expanded", run=needed_run(given), expansions="")
    config.task.objective = dict(
        name="dual_encoder.objectives.imitation.imitated", mse_weight=1.0, contrastive_weight=1.0
    )


def lexical_imitation(config: ml_collections.ConfigDict, given: Any) -> None:
    """The lexical model: BM25's first 10 documents are relevant and its ranks 46 to 50 hard negatives (Chen
    et al., 2022, SPAR). Then `python -m experiments.concatenate` it with another run."""
    config.batch.pairs = dict(name="dual_encoder.lexical_imitation.bm25_pairs", top=10, **BM25)
    config.batch.negatives_per_query = given.negatives or 1
    config.batch.negatives = dict(name="dual_encoder.negatives.bm25", count=5, skip=45, **BM25)


def tightly_coupled(config: ml_collections.ConfigDict, given: Any) -> None:
    """A small Transformer learns from a ColBERT of its size that learns beside it and scores all pairs of a
    batch (after Lin et al., 2020, TCT-ColBERT, whose teacher is trained first)."""
    small.use(config, given)
    config.task = dict(
        name="dual_encoder.tightly_coupled.TightlyCoupled",
        base=config.task.to_dict(),
        teacher=dict(name="dual_encoder.late_interaction.LateInteraction", encoder=small.encoder(), width=64),
        contrastive_weight=0.5,
        teacher_weight=1.0,
        teacher_temperature=0.25,
    )


def _of_teacher(config: ml_collections.ConfigDict, given: Any) -> None:
    """Begins with the towers of `run`, each by itself, and leaves the document tower as it is."""
    separated(config)
    config.init_from.run = needed_run(given)
    config.tokenizer = dict(name="corpora.tokenizer.load", path=f"{needed_run(given)}/tokenizer.json")
    config.task.frozen = ("^model/document/",)


def _cross_encoder(given: Any) -> dict:
    return dict(name="cross_encoder.trained.Scorer", run=needed_run(given))


def _taught(
    config: ml_collections.ConfigDict, given: Any, teacher: dict, loss: dict, **weights: float
) -> None:
    """Lists negatives of BM25 to every query, which a teacher scores."""
    config.batch.negatives_per_query = given.negatives or LISTED
    config.batch.negatives = dict(
        name="dual_encoder.negatives.bm25", count=max(SCORED, given.negatives), **BM25
    )
    config.batch.teacher = teacher
    config.task.objective = dict(name="dual_encoder.objectives.distillation.distilled", loss=loss, **weights)


RECIPES = {
    "cross_encoder_kl": cross_encoder_kl,
    "cross_encoder_margin_mse": cross_encoder_margin_mse,
    "dual_encoder_kl": dual_encoder_kl,
    "bm25_kl": bm25_kl,
    "denoised": denoised,
    "query_distillation": query_distillation,
    "softqe": softqe,
    "lexical_imitation": lexical_imitation,
    "tightly_coupled": tightly_coupled,
}
