"""Recipes of the two towers: what they share, what is frozen, what is added.

Each is `(config, given) -> None`, see configs/dual_encoder/recipe.py.
"""

RECIPES = {}
