"""Recipes of the two towers: what they share, what is frozen, what is added.

Each is `(config, given) -> None`, see configs/dual_encoder/recipe.py; all are on the Transformer of `small`.
Those that change a trained model take it as `run=`, such as one of the recipe `small`.
"""

from typing import Any

import ml_collections

from configs.dual_encoder import parts
from configs.dual_encoder.recipes import small


def tied(config: ml_collections.ConfigDict, given: Any) -> None:
    """One tower for both sides."""
    small.use(config, given)


def separate(config: ml_collections.ConfigDict, given: Any) -> None:
    """A tower for each side, which share nothing (Karpukhin et al., 2020, "Dense Passage Retrieval")."""
    model = dict(name="dual_encoder.towers.separate", query=small.tower(), document=small.tower())
    small.use(config, given, model)


def shared_table(config: ml_collections.ConfigDict, given: Any) -> None:
    """A tower for each side, with one table of token embeddings (Dong et al., 2022, "Exploring Dual Encoder
    Architectures for Question Answering")."""
    model = dict(name="dual_encoder.towers.shared_embedding", query=small.tower(), document=small.tower())
    small.use(config, given, model)


def shared_encoder(config: ml_collections.ConfigDict, given: Any) -> None:
    """One encoder for both sides, and a linear head of its own for each."""
    query, document = (small.tower(head=dict(name="flax.linen.Dense", features=small.WIDTH)) for _ in "qd")
    model = dict(name="dual_encoder.towers.shared_encoder", query=query, document=document)
    small.use(config, given, model)


def smaller_queries() -> dict:
    """The tower of queries where they are to be cheap: half the layers, half the width, and a head up to the
    width of documents."""
    made = parts.transformer_tower(small.VOCAB_SIZE, small.WIDTH // 2, small.LAYERS // 2)
    return made | dict(head=dict(name="flax.linen.Dense", features=small.WIDTH))


def asymmetric(config: ml_collections.ConfigDict, given: Any) -> None:
    """Towers of different sizes: queries are encoded by half the layers of half the width, and projected."""
    model = dict(name="dual_encoder.towers.separate", query=smaller_queries(), document=small.tower())
    small.use(config, given, model)


def frozen_documents(config: ml_collections.ConfigDict, given: Any) -> None:
    """A small tower of queries learns the space of `run`, whose tower encodes documents and stays as it
    is."""
    asymmetric(config, given)
    config.task.frozen = ("^model/document/",)
    _from(config, given, (("^model/query/", "model/document/"), ("log_temperature", None)))


def lora(config: ml_collections.ConfigDict, given: Any) -> None:
    """Low-rank products beside the query and value kernels of `run`, and nothing else, are trained (Hu et
    al., 2022)."""
    small.use(config, given)
    kernels = ("attention/(query|value)/kernel",)
    config.task.lora = dict(name="dual_encoder.lora.Lora", kernels=kernels, rank=8, alpha=16.0)
    config.task.frozen = ("^model/",)
    _from(config, given)


def deep_prompts(config: ml_collections.ConfigDict, given: Any) -> None:
    """Learned keys and values before each layer of `run`, which is frozen, for queries and for documents
    (Tang et al., 2022, "DPTDR"); their learning rate, 32 prompts."""
    encoder = dict(name="backbones.prefix.prefixed", encoder=small.encoder(), length=32, domains=2)
    small.use(config, given, dict(name="dual_encoder.towers.tied", tower=small.tower(encoder=encoder)))
    config.task.frozen = ("^model/(?!.*/prefix/)",)
    config.optimizer = parts.adam(7e-3, given.steps)
    _from(config, given)


def mixture_of_experts(config: ml_collections.ConfigDict, given: Any) -> None:
    """A tied tower whose second layer has eight experts, two of them for each token (see docs/moe.md)."""
    encoder = small.encoder()
    width = encoder["block"]["feed_forward"]["width"] // 2
    mixture = dict(
        name="moe.mixture.Mixture",
        router=dict(name="moe.routers.TopK", num_experts=8, k=2),
        experts=dict(name="moe.experts.Gated", width=width),
        dispatcher=dict(name="moe.dropless.Dropless"),
    )
    sparse = encoder["block"] | dict(feed_forward=mixture)
    period = dict(name="backbones.periods.Period", every=2, dense=encoder["block"], sparse=sparse)
    encoder.update(block=period, num_layers=small.LAYERS // 2, unroll=1)
    small.use(config, given, dict(name="dual_encoder.towers.tied", tower=small.tower(encoder=encoder)))
    config.task.auxiliary = dict(
        name="moe.auxiliary.Auxiliary",
        losses=dict(balance=dict(name="moe.balance.load_balancing"), z=dict(name="moe.balance.router_z")),
        weights=dict(balance=1e-2, z=1e-3),
    )
    config.mesh = parts.mesh()


def _from(config: ml_collections.ConfigDict, given: Any, rules: tuple = ()) -> None:
    """Begins with the parameters of `run`."""
    if not given.run:
        raise ValueError(
            "config argument run is empty; allowed with this recipe: a run of the recipe `small`"
        )
    config.init_from.run, config.init_from.rules = given.run, rules


RECIPES = {
    "small": tied,
    "separate": separate,
    "shared_table": shared_table,
    "shared_encoder": shared_encoder,
    "asymmetric": asymmetric,
    "frozen_documents": frozen_documents,
    "lora": lora,
    "deep_prompts": deep_prompts,
    "mixture_of_experts": mixture_of_experts,
}
