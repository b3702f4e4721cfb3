"""A sparse dual encoder on a collection in BEIR layout: every other layer of one Transformer for queries and
documents is a mixture of experts.

    python -m experiments.train --config=configs/dual_encoder/mixture.py --workdir=runs/mixture
    python -m experiments.train --workdir=runs/mixture \
        --config=configs/dual_encoder/mixture.py:folder=medquad,experts=16,balance=bias

The dense twin is `beir_folder.py:folder=fairytaleqa,encoder=transformer`: it has the same active parameters,
as an expert is half as wide as the dense layer and each token has two. Experts are balanced by a loss over
the global batch (Qiu et al., 2025, "Demons in the Detail"), or without one by biases (Wang et al., 2024,
"Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts"); nothing is dropped, so that a text's
vector depends on no other text.

It reproduces no paper, and has no number yet: a full training of this Transformer is for an accelerator.
"""

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import beir_folder, parts

WIDTH, LAYERS, CHOICES = 256, 4, 2


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folder, steps, batch, experts, balance (loss or bias)."""
    given = parse_argument(
        argument, {"folder": "fairytaleqa", "steps": 1_000, "batch": 512, "experts": 8, "balance": "loss"}
    )
    if given.balance not in ("loss", "bias"):
        raise ValueError(f"config argument balance={given.balance!r}; allowed: loss, bias")
    config = beir_folder.get_config(
        f"folder={given.folder},encoder=transformer,steps={given.steps},batch={given.batch}"
    )
    config.task = parts.contrastive(dict(name="dual_encoder.towers.tied", tower=tower(given))) | dict(
        auxiliary=auxiliary(given.balance)
    )
    config.mesh = parts.mesh()
    return config


def tower(given: ml_collections.ConfigDict) -> dict:
    """As `parts.transformer_tower`, of periods of a dense layer and a sparse one."""
    made = parts.transformer_tower(beir_folder.VOCAB_SIZE, WIDTH, LAYERS)
    encoder = made["encoder"]
    dense = encoder["block"]
    router = dict(name="moe.routers.TopK", num_experts=given.experts, k=CHOICES)
    if given.balance == "bias":
        router["name"] = "moe.loss_free.LossFree"
    mixture = dict(
        name="moe.mixture.Mixture",
        router=router,
        experts=dict(name="moe.experts.Gated", width=dense["feed_forward"]["width"] // CHOICES),
        dispatcher=dict(name="moe.dropless.Dropless"),
    )
    sparse = dense | dict(feed_forward=mixture)
    period = dict(name="backbones.periods.Period", every=2, dense=dense, sparse=sparse)
    encoder.update(block=period, num_layers=LAYERS // 2, unroll=LAYERS // 2)
    return made


def auxiliary(balance: str) -> dict:
    """What keeps experts in use; router logits are kept small either way."""
    losses = dict(z=dict(name="moe.balance.router_z"))
    weights = dict(z=1e-3)
    if balance == "loss":
        losses["balance"] = dict(name="moe.balance.load_balancing")
        weights["balance"] = 1e-2
    found = dict(name="moe.auxiliary.Auxiliary", losses=losses, weights=weights, accumulation="running")
    if balance == "bias":
        found["bias_update"] = dict(name="moe.loss_free.update", rate=1e-3)
    return found
