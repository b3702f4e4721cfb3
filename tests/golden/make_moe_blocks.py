"""Makes moe_*.npz: a tiny random block of each published mixture of experts, with what it computes.

    pip install "transformers==4.57.6" torch
    python tests/golden/make_moe_blocks.py

The reference is the block of transformers 4.57.6, which still has a module an expert; its state dict has
therefore the names of the published checkpoints (later versions stack the experts in memory). A file holds

    state.<name>   the state dict of the block, f32, under its own names
    config         JSON: the config's values that the block reads
    input, output  f32 [B, L, D]
    logits         f32 [T, E], of the router
    experts        int32 [T, K], chosen experts in ascending order, seen at the experts themselves

No test imports this file.
"""

import json
import pathlib

import numpy as np
import torch
import transformers
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2MoE
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

VERSION = "4.57.6"
SHAPE = (2, 7, 8)  # B, L, D
WIDE = dict(hidden_size=8, hidden_act="silu")
GROUPED = dict(n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=6, n_group=4, topk_group=2)
BLOCKS = {
    "mixtral": (
        MixtralSparseMoeBlock,
        transformers.MixtralConfig,
        dict(WIDE, num_local_experts=6, num_experts_per_tok=2, intermediate_size=6),
    ),
    "qwen2": (  # as Qwen1.5-MoE-A2.7B: no renormalization, one gated shared expert
        Qwen2MoeSparseMoeBlock,
        transformers.Qwen2MoeConfig,
        dict(
            WIDE,
            num_experts=8,
            num_experts_per_tok=3,
            moe_intermediate_size=6,
            norm_topk_prob=False,
            shared_expert_intermediate_size=10,
        ),
    ),
    "qwen3": (  # as Qwen3-30B-A3B: renormalized, nothing shared
        Qwen3MoeSparseMoeBlock,
        transformers.Qwen3MoeConfig,
        dict(WIDE, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=6, norm_topk_prob=True),
    ),
    "olmoe": (
        OlmoeSparseMoeBlock,
        transformers.OlmoeConfig,
        dict(WIDE, num_experts=8, num_experts_per_tok=3, intermediate_size=6, norm_topk_prob=False),
    ),
    "deepseek_v2_lite": (
        DeepseekV2MoE,
        transformers.DeepseekV2Config,
        dict(
            WIDE,
            n_routed_experts=8,
            num_experts_per_tok=3,
            moe_intermediate_size=6,
            n_shared_experts=2,
            topk_method="greedy",
            scoring_func="softmax",
            norm_topk_prob=False,
            routed_scaling_factor=1.0,
        ),
    ),
    "deepseek_v2": (
        DeepseekV2MoE,
        transformers.DeepseekV2Config,
        dict(
            WIDE,
            **GROUPED,
            n_shared_experts=2,
            topk_method="group_limited_greedy",
            scoring_func="softmax",
            norm_topk_prob=False,
            routed_scaling_factor=16.0,
        ),
    ),
    "deepseek_v3": (
        DeepseekV3MoE,
        transformers.DeepseekV3Config,
        dict(
            WIDE,
            **GROUPED,
            n_shared_experts=1,
            topk_method="noaux_tc",
            scoring_func="sigmoid",
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
        ),
    ),
}


def main() -> None:
    if transformers.__version__ != VERSION:
        raise SystemExit(f"transformers is {transformers.__version__}; allowed: {VERSION}")
    for number, (name, (block, config, values)) in enumerate(BLOCKS.items()):
        path = pathlib.Path(__file__).with_name(f"moe_{name}.npz")
        np.savez_compressed(path, **record(block(config(**values)), values, seed=20 + number))
        print(path.name, path.stat().st_size, "bytes")


def record(block: torch.nn.Module, values: dict, seed: int) -> dict[str, np.ndarray]:
    """Returns what a file holds, of the block with random weights."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in block.state_dict().items():
            scale = 0.15 if key.endswith("bias") else value.shape[-1] ** -0.5
            value.copy_(torch.randn(value.shape, generator=draw) * scale)
        x = torch.randn(SHAPE, generator=draw)
        seen = watch(block)
        result = block.eval()(x)
        output = result[0] if isinstance(result, tuple) else result
        rows = x.reshape(-1, SHAPE[-1])
        logits = rows @ block.gate.weight.T
    chosen = [
        sorted(e for e, given in seen.items() if (given == row).all(dim=-1).any()) for row in rows
    ]  # a token is at an expert where its row is among those that the expert was given
    state = {f"state.{key}": value.numpy() for key, value in block.state_dict().items()}
    config = {key: value for key, value in values.items() if key != "hidden_size"}
    check_margins(logits.numpy(), block.state_dict().get("gate.e_score_correction_bias"))
    return {
        **state,
        "config": np.array(json.dumps(config)),
        "input": x.numpy(),
        "output": output.numpy(),
        "logits": logits.numpy(),
        "experts": np.array(chosen, np.int32),
    }


def watch(block: torch.nn.Module) -> dict[int, torch.Tensor]:
    """Returns a dict that a forward pass fills: expert -> the rows that it was given."""
    seen: dict[int, torch.Tensor] = {}
    for e, expert in enumerate(block.experts):
        expert.register_forward_pre_hook(lambda _, args, e=e: seen.update({e: args[0].detach()}))
    return seen


def check_margins(logits: np.ndarray, bias: torch.Tensor | None) -> None:
    """Raises where scores lie so close that rounding could choose other experts.

    And where a biased sigmoid is not positive: transformers masks groups with 0.0, the authors' own code
    with minus infinity, and the two agree on positive scores alone.
    """
    scores = logits if bias is None else 1 / (1 + np.exp(-logits)) + bias.numpy()
    gaps = np.diff(np.sort(scores, axis=-1), axis=-1)
    if gaps.min() < 1e-4 or (bias is not None and scores.min() <= 0):
        raise SystemExit(f"scores are too close ({gaps.min()}) or not positive; take another seed")


if __name__ == "__main__":
    main()
