"""A small language model with a mixture of experts in every layer, on the corpora of `corpora`.

    python -m experiments.train --config=configs/language_model/mixture.py --workdir=runs/moe
    python -m experiments.experts --workdir=runs/moe
    python -m experiments.train --workdir=runs/fine \\
        --config=configs/language_model/mixture.py:experts=63,k=7,expert_width=64,shared=64

The argument's other keys are those that the studies of experiments/reproduce vary: over how much of a batch
the load is balanced, and how many tokens an expert serves.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.language_model import corpora, parts


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folders, width, layers, length, batch, steps as in `corpora`; experts, k (of a token),
    expert_width, shared (width of an expert that all tokens share; 0 for none), balance (weight of the
    load-balancing loss), parts (of a batch that are balanced each; 0 balances the whole), capacity (its
    factor; 0 serves all), domain_rows (rows of one domain that stand together), even (1: domains have equal
    shares of a batch; 0: by their size), seed."""
    given = parse_argument(
        argument,
        dict(
            folders="fairytaleqa+medquad+cranfield", width=256, layers=4, length=128, batch=32, steps=400,
            experts=16, k=2, expert_width=256, shared=0, balance=0.01, parts=0, capacity=0.0, domain_rows=1,
            even=0, seed=0,
        ),
    )  # fmt: skip
    dense = ("folders", "width", "layers", "length", "batch", "steps")
    config = corpora.get_config(",".join(f"{key}={given[key]}" for key in dense))
    config.seed = given.seed
    config.batch.domain_rows = given.domain_rows
    if given.even:
        config.data.weights = dict.fromkeys(config.data.collections, 1.0)
    layer = parts.mixture_of_experts(
        experts=given.experts,
        k=given.k,
        width=given.expert_width,
        shared=given.shared,
        capacity=given.capacity,
        length=given.length,
    )
    model = parts.decoder(corpora.VOCAB_SIZE, given.width, given.layers, layer)
    config.task = parts.causal(model, parts.auxiliary(given.balance, given.parts))
    config.mesh = parts.expert_mesh(shared=given.shared > 0)
    return config
