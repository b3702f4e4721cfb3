"""Recipes that change the objective; each `(config, given) -> None`, see configs/dual_encoder/recipe.py.

Those that need listed negatives take BM25's, two a query, or as many as `negatives=` says.
"""

from typing import Any

import ml_collections

from configs.arguments import needed_run
from configs.dual_encoder.recipes.negatives import bm25, refreshed

OBJECTIVES = "dual_encoder.objectives"
WIDTHS = (32, 64, 128, 256)  # below the whole width, which is there too


def one_way(config: ml_collections.ConfigDict, given: Any) -> None:
    """InfoNCE from queries to documents only (van den Oord et al., 2018)."""
    del given
    _objective(config, "softmax.info_nce")


def sigmoid(config: ml_collections.ConfigDict, given: Any) -> None:
    """Each pair by itself, with a learned temperature and bias (Zhai et al., 2023, SigLIP)."""
    del given
    _objective(config, "pairwise.sigmoid")
    config.task.update(temperature=0.1, bias=-10.0)


def listed_triplet(config: ml_collections.ConfigDict, given: Any) -> None:
    """A margin above each listed negative (Schroff et al., 2015)."""
    _list_negatives(config, given)
    _objective(config, "pairwise.listed_triplet", margin=0.2)
    config.task.learn_temperature = False


def hardest_triplet(config: ml_collections.ConfigDict, given: Any) -> None:
    """A margin above the hardest negative of the batch (Faghri et al., 2018, VSE++)."""
    del given
    _objective(config, "pairwise.hardest_triplet", margin=0.2)
    config.task.learn_temperature = False


def focal(config: ml_collections.ConfigDict, given: Any) -> None:
    """InfoNCE that counts a query less where it is answered well (Zhao et al., 2025, KaLM-Embedding-V2)."""
    del given
    _objective(config, "focal.focal_info_nce", gamma=0.5)


def mixed(config: ml_collections.ConfigDict, given: Any) -> None:
    """As `focal`, with hard negatives mixed from those listed (Zhao et al., 2025, KaLM-Embedding-V2)."""
    _list_negatives(config, given)
    _objective(config, "mixing.mixed_info_nce", pairs=1, list_mix=True, gamma=0.5)


def one_to_k(config: ml_collections.ConfigDict, given: Any) -> None:
    """Several positives of equal weight, side by side in a batch (Nie et al., 2024)."""
    del given
    _objective(config, "multi_positive.one_to_k")
    config.batch.neighbors = 2


def pair(config: ml_collections.ConfigDict, given: Any) -> None:
    """A document is to be closer to its query than to other documents: the first of two stages (Ren et al.,
    2021, PAIR)."""
    _list_negatives(config, given)
    _objective(config, "passage_centric.pair", alpha=0.1)


def pair_second(config: ml_collections.ConfigDict, given: Any) -> None:
    """The second stage of `pair`, from the run of the first: InfoNCE from queries to documents alone."""
    _list_negatives(config, given)
    _objective(config, "softmax.info_nce")
    config.init_from.run = needed_run(given)


def improved(config: ml_collections.ConfigDict, given: Any) -> None:
    """Queries among queries and documents among documents are negatives too (after Li et al., 2023, GTE)."""
    del given
    _objective(config, "enlarged.improved_info_nce")


def decoupled(config: ml_collections.ConfigDict, given: Any) -> None:
    """InfoNCE without the positive in its denominator (Yeh et al., 2022)."""
    del given
    _objective(config, "enlarged.decoupled_info_nce")


def matryoshka(config: ml_collections.ConfigDict, given: Any) -> None:
    """Vectors that may be cut, evaluated at each width and by a funnel of them (Kusupati et al., 2022)."""
    del given
    model = config.task.model
    tower = model.query if "query" in model else model.tower
    whole = tower.encoder.embed.width
    widths = tuple(width for width in WIDTHS if width < whole)
    inner = config.task.objective.to_dict()
    _objective(config, "matryoshka.matryoshka", objective=inner, widths=(*widths, whole))
    config.evaluation.widths = widths
    config.evaluation.funnel = tuple((width, 800 // 2**place) for place, width in enumerate(widths))


def refreshed_matryoshka(config: ml_collections.ConfigDict, given: Any) -> None:
    """`matryoshka` with the negatives of `refreshed`: the two that helped most on MedQuAD."""
    refreshed(config, given)
    matryoshka(config, given)


def coupled_estimation(config: ml_collections.ConfigDict, given: Any) -> None:
    """Listed negatives weighed by how likely they were judged, which a second model learns, beside InfoNCE in
    the batch (after Cai et al., 2022)."""
    _list_negatives(config, given)
    base = config.task.to_dict() | dict(measures={}, temperature=0.2, learn_temperature=False)
    config.task = dict(
        name="dual_encoder.coupled_estimation.CoupledEstimation",
        base=base,
        debias=2.0,
        contrastive_weight=1.0,
    )


def _objective(config: ml_collections.ConfigDict, name: str, **options: Any) -> None:
    config.task.objective = dict(name=f"{OBJECTIVES}.{name}", **options)


def _list_negatives(config: ml_collections.ConfigDict, given: Any) -> None:
    bm25(config, given)
    config.batch.negatives_per_query = given.negatives or 2


RECIPES = {
    "one_way": one_way,
    "sigmoid": sigmoid,
    "listed_triplet": listed_triplet,
    "hardest_triplet": hardest_triplet,
    "focal": focal,
    "mixed": mixed,
    "one_to_k": one_to_k,
    "pair": pair,
    "pair_second": pair_second,
    "improved": improved,
    "decoupled": decoupled,
    "matryoshka": matryoshka,
    "refreshed_matryoshka": refreshed_matryoshka,
    "coupled_estimation": coupled_estimation,
}
