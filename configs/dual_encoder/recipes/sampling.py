"""Recipes of the order of examples, and how groups of them are weighed.

Each is `(config, given) -> None`, see configs/dual_encoder/recipe.py.
"""

from typing import Any

import ml_collections

from configs.arguments import needed_run
from configs.dual_encoder.recipes import teachers

CLUSTERS = 50  # of queries, before those that are too small for a batch are merged


def topics(config: ml_collections.ConfigDict, given: Any) -> None:
    """Two topics a batch: k-means over the words of queries (after Hofstätter et al., 2021)."""
    _grouped(config, dict(name="dual_encoder.topics.latent", width=128), given.batch // 2)


def topics_of_run(config: ml_collections.ConfigDict, given: Any) -> None:
    """One topic a batch: k-means over the queries' vectors of `run` (Hofstätter et al., 2021, TAS)."""
    _grouped(config, dict(name="dual_encoder.topics.trained", run=needed_run(given)), given.batch)


def tas_balanced(config: ml_collections.ConfigDict, given: Any) -> None:
    """One topic a batch, the margins of the cross-encoder of `run`, and negatives drawn evenly over ten bins
    of them (Hofstätter et al., 2021, TAS-Balanced with its pairwise teacher)."""
    teachers.cross_encoder_margin_mse(config, given)
    config.batch.negatives_per_query = 1
    config.batch.margin_bins = 10
    _grouped(config, dict(name="dual_encoder.topics.latent", width=128), given.batch)


def task_batches(config: ml_collections.ConfigDict, given: Any) -> None:
    """One collection a batch, of several: `folder=medquad+fairytaleqa`; each is as much of the training as it
    has examples, or as `--config.batch.group_weights` says."""
    _one_collection(config, given, ())


def idro(config: ml_collections.ConfigDict, given: Any) -> None:
    """Eight topics weighed by their losses and gradients (Yu et al., 2022, COCO-DR)."""
    groups = dict(name="dual_encoder.topics.latent", width=128, clusters=8, smallest=1, seed=0)
    config.batch.groups = groups
    config.task = dict(name="dual_encoder.robust.Clusters", base=config.task.to_dict())


def tdro(config: ml_collections.ConfigDict, given: Any) -> None:
    """Collections weighed by their losses relative to those of `run`, a plain training on the same ones (Ma
    et al., 2025); give its weights to `tdro_weighted`."""
    _joined(config, given)
    config.batch.groups = dict(name="dual_encoder.topics.collections")
    config.task = dict(
        name="dual_encoder.robust.Tasks", base=config.task.to_dict(), rate=0.02, reference=needed_run(given)
    )


def tdro_weighted(config: ml_collections.ConfigDict, given: Any) -> None:
    """As `task_batches`, with the weights that the `tdro` of `run` came to."""
    weights = dict(name="dual_encoder.robust.weights_of", run=needed_run(given), top=1.0)
    _one_collection(config, given, weights)


def joined(config: ml_collections.ConfigDict, given: Any) -> None:
    """Several collections in one training, all in all batches; what `tdro` has as its reference."""
    _joined(config, given)


def _one_collection(config: ml_collections.ConfigDict, given: Any, weights: Any) -> None:
    _joined(config, given)
    config.batch.groups = dict(name="dual_encoder.topics.collections")
    config.batch.group_rows = given.batch
    config.batch.group_weights = weights


def _joined(config: ml_collections.ConfigDict, given: Any) -> None:
    folders = tuple(given.folder.split("+"))
    config.data = dict(name="corpora.sources.joined.load", folders=folders, allow_missing=False)


def _grouped(config: ml_collections.ConfigDict, groups: dict, rows: int) -> None:
    config.batch.groups = dict(groups, clusters=CLUSTERS, smallest=rows, seed=0)
    config.batch.group_rows = rows


RECIPES = {
    "topics": topics,
    "topics_of_run": topics_of_run,
    "tas_balanced": tas_balanced,
    "joined": joined,
    "task_batches": task_batches,
    "idro": idro,
    "tdro": tdro,
    "tdro_weighted": tdro_weighted,
}
