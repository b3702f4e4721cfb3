"""Recipes that change the objective; each `(config, given) -> None`, see configs/dual_encoder/recipe.py."""

from typing import Any

import ml_collections


def one_way(config: ml_collections.ConfigDict, given: Any) -> None:
    """InfoNCE from queries to documents only (van den Oord et al., 2018)."""
    del given
    config.task.objective = dict(name="dual_encoder.objectives.softmax.info_nce")


RECIPES = {"one_way": one_way}
