"""A sparse language model of OLMoE's size, for a pod of TPUs: one of 64 experts a chip.

    python -m experiments.plan --topology=v5p:4x4x4 --config=configs/pod/moe_olmoe.py
    python -m experiments.cost --topology=v5p:4x4x4 --config=configs/pod/moe_olmoe.py
    python -m experiments.train --workdir=runs/pod --config=configs/pod/moe_olmoe.py:folders=/data/text

16 layers, 2,048 wide, 16 heads of 128; 64 experts of width 1,024, of which a token has 8; a vocabulary of
50,304 in two tables: 6.9 billion parameters, 1.3 billion of them active for a token (OLMoE-1B-7B; Muennighoff
et al., 2024, "OLMoE: Open Mixture-of-Experts Language Models"). It departs from theirs in that queries and
keys are not normalized, and that experts have a capacity where theirs drop nothing. Texts of 2,048 tokens,
1,024 a step; in bfloat16, each layer keeping its input alone.

All 64 chips are along `expert`: they split the batch, and each has one expert of each layer and a copy of all
else. With capacity for 1.25 times what balance would take, a sequence has C = 1.25 8 2048 / 64 = 320 places
for each expert, and each all-to-all is given, on a chip with 16 sequences,

    16 64 320 2048 values of 2 bytes = 1,342,177,280 bytes, of which it sends 63/64.

A layer has two forward, two as its forward pass is computed again, and two backward: 96 in a step.

Planned with libtpu 0.0.42, jax 0.10.2 (compiled facts and a roofline, no timing; docs/planning.md):

    slice      needed a chip      compute   memory      interconnect  at least    best MFU
    v5p:4x4x4  29.7 of 95.74 GiB  850.2 ms  1,015.5 ms  648.7 ms      1,015.5 ms  63.9%

The all-to-alls are 644 ms of the interconnect. Compiling takes about 150 s of one core.
"""

import ml_collections

from configs.pod import moe_parts

WIDTH, LAYERS, VOCAB_SIZE = 2_048, 16, 50_304
EXPERTS, CHOICES, EXPERT_WIDTH = 64, 8, 1_024
BATCH = 1_024
AXES = dict(data=-1, expert=64)


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folders, steps."""
    return moe_parts.language_model(
        argument,
        width=WIDTH,
        num_layers=LAYERS,
        vocab_size=VOCAB_SIZE,
        feed_forward=moe_parts.mixture(EXPERTS, CHOICES, EXPERT_WIDTH),
        batch=BATCH,
        axes=AXES,
        learning_rate=4e-4,
    )
