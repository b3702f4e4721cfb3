"""Recipes of what a tower makes of an encoder's output.

Each is `(config, given) -> None`, see configs/dual_encoder/recipe.py.
"""

RECIPES = {}
