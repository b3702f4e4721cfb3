"""Recipes of who mines the negatives, and what is made of them.

Each is `(config, given) -> None`, see configs/dual_encoder/recipe.py.
"""

RECIPES = {}
