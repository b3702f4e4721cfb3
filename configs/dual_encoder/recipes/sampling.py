"""Recipes of the order of examples, and how groups of them are weighed.

Each is `(config, given) -> None`, see configs/dual_encoder/recipe.py.
"""

RECIPES = {}
