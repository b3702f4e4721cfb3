"""One of the field's recipes for dual encoders, on any collection in BEIR layout with train, dev and test.

    python -m experiments.train --config=configs/dual_encoder/recipe.py:folder=medquad,recipe=one_way \
        --workdir=runs/one_way

A recipe is a few lines that change the config of `beir_folder`; they stand in configs/dual_encoder/recipes/,
and docs/dual_encoders.md lists them with their papers. `recipe=plain` changes nothing. Recipes that learn
from another run, such as a teacher's, take it as `run=`.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import beir_folder
from configs.dual_encoder.recipes import heads, negatives, objectives, sampling, teachers, towers

RECIPES = {
    "plain": lambda config, given: None,
    **objectives.RECIPES,
    **negatives.RECIPES,
    **sampling.RECIPES,
    **heads.RECIPES,
    **towers.RECIPES,
    **teachers.RECIPES,
}


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folder, recipe, run (of a teacher, for recipes that have one); encoder, steps, batch and
    negatives as in `beir_folder`."""
    given = parse_argument(
        argument,
        {
            "folder": "medquad",
            "recipe": "plain",
            "run": "",
            "encoder": "bag",
            "steps": 150,
            "batch": 512,
            "negatives": 0,
        },
    )
    if given.recipe not in RECIPES:
        raise ValueError(f"config argument recipe={given.recipe!r}; allowed: {', '.join(RECIPES)}")
    config = beir_folder.get_config(
        f"folder={given.folder},encoder={given.encoder},steps={given.steps},batch={given.batch},"
        f"negatives={given.negatives}"
    )
    RECIPES[given.recipe](config, given)
    return config
