"""Recipes of what a tower makes of an encoder's output.

Each is `(config, given) -> None`, see configs/dual_encoder/recipe.py; all are on the Transformer of `small`.
"""

from collections.abc import Callable
from typing import Any

import ml_collections

from configs.dual_encoder.recipes import small

MASKS = {"bidirectional": "backbones.masks.padding", "causal": "backbones.masks.causal"}
POOLERS = {
    "mean": lambda mask: dict(name="dual_encoder.poolers.mean"),
    "last": lambda mask: dict(name="dual_encoder.poolers.last"),
    "trainable": lambda mask: dict(name="dual_encoder.attention_poolers.LastLayer", latents=8, heads=2),
    "layers": lambda mask: dict(
        name="dual_encoder.attention_poolers.AllLayers",
        latents=8,
        heads=2,
        of_layer=dict(name=f"dual_encoder.poolers.{'last' if mask == 'causal' else 'mean'}"),
    ),
    "latent": lambda mask: dict(name="dual_encoder.attention_poolers.LatentAttention", latents=64, heads=2),
}


def pooled(pooling: str, mask: str) -> Callable[[ml_collections.ConfigDict, Any], None]:
    """A pooling with a mask (Tang and Yang, 2024; for `latent` Lee et al., 2025)."""

    def recipe(config: ml_collections.ConfigDict, given: Any) -> None:
        encoder = small.encoder(visible=dict(name=MASKS[mask]), return_layers=pooling == "layers")
        tower = small.tower(encoder=encoder, pooler=POOLERS[pooling](mask))
        small.use(config, given, dict(name="dual_encoder.towers.tied", tower=tower))

    return recipe


def token_aggregation(config: ml_collections.ConfigDict, given: Any) -> None:
    """Tokens as weighted words, folded into 96 numbers, beside 32 of the first token (Lin, Li and Lin, 2023,
    "Aggretriever")."""
    widths = (32, 96)
    tower = dict(
        name="dual_encoder.token_aggregation.tower",
        encoder=small.encoder(),
        first_width=widths[0],
        width=widths[1],
    )
    small.use(config, given, dict(name="dual_encoder.towers.tied", tower=tower))
    config.task.objective = dict(
        name="dual_encoder.objectives.parts.with_parts",
        objective=config.task.objective.to_dict(),
        widths=widths,
    )
    config.task.temperature = 1.0


def gaussian(config: ml_collections.ConfigDict, given: Any) -> None:
    """Texts as normal distributions, ranked by the divergence between them, which is one inner product
    (Zamani and Bendersky, 2023)."""
    model = dict(name="dual_encoder.gaussian.tied", encoder=small.encoder(), width=small.WIDTH // 2)
    small.use(config, given, model)
    # From queries to documents only: the inner product leaves out what a query adds.
    config.task.objective = dict(name="dual_encoder.objectives.softmax.info_nce")
    config.task.temperature = 10.0


def two_dimensional(config: ml_collections.ConfigDict, given: Any) -> None:
    """Vectors of every layer and of several widths in one training (Li et al., 2024, "2D Matryoshka Sentence
    Embeddings")."""
    encoder = small.encoder(return_layers=True, norm_layers=True)
    small.use(config, given, dict(name="dual_encoder.towers.tied", tower=small.tower(encoder=encoder)))
    config.task = dict(
        name="dual_encoder.two_dimensional.TwoDimensional",
        base=config.task.to_dict(),
        widths=(16, 32, 64),
        align=1.0,
        align_temperature=1.0,
    )


def stationary(config: ml_collections.ConfigDict, given: Any) -> None:
    """Vectors held to fixed prototypes of topics, and to those in the index of `run`, which stays (Biondi et
    al., 2024); the first model of a sequence has no `run`. experiments.compatibility measures a sequence."""
    small.use(config, given)
    config.batch.groups = dict(name="dual_encoder.topics.latent", width=128, clusters=50, smallest=1, seed=0)
    config.task = dict(
        name="dual_encoder.compatible.Stationary",
        base=config.task.to_dict(),
        classes=50,
        previous=given.run,
        share=0.1,
        scale=10.0,
    )


RECIPES = {
    "stationary": stationary,
    "token_aggregation": token_aggregation,
    "gaussian": gaussian,
    "two_dimensional": two_dimensional,
} | {f"pool_{pooling}_{mask}": pooled(pooling, mask) for pooling in POOLERS for mask in MASKS}
