"""A sparse language model of DeepSeekMoE 16B's size, for a pod of TPUs: four of 64 experts a chip.

    python -m experiments.plan --topology=v5e:16x16 --config=configs/pod/moe_deepseek.py
    python -m experiments.cost --topology=v5e:16x16 --config=configs/pod/moe_deepseek.py
    python -m experiments.train --workdir=runs/pod --config=configs/pod/moe_deepseek.py:folders=/data/text

28 layers, 2,048 wide, 16 heads of 128; 64 routed experts of width 1,408, of which a token has 6, and two
shared ones; a vocabulary of 102,400 in two tables (Dai et al., 2024, "DeepSeekMoE: Towards Ultimate Expert
Specialization in Mixture-of-Experts Language Models"). It departs from theirs in that the first layer is
sparse like the others: 16.9 billion parameters, 2.8 billion of them active for a token. Texts of 2,048
tokens, 1,024 a step; in bfloat16, each layer keeping its input alone.

All 256 chips split the batch. Experts are split 16 ways over `expert`, and each then over `fsdp` with all
else. With capacity for 1.25 times what balance would take, a sequence has C = 1.25 6 2048 / 64 = 240 places
for each expert, and each all-to-all is given, on a chip with 4 sequences,

    4 64 240 2048 values of 2 bytes = 251,658,240 bytes, of which it sends 15/16.

A layer has two forward, two as its forward pass is computed again, and two backward: 168 in a step.

Planned with libtpu 0.0.42, jax 0.10.2 (compiled facts and a roofline, no timing; docs/planning.md):

    slice      needed a chip      compute     memory      interconnect  at least    best MFU
    v5e:16x16  9.42 of 15.75 GiB  1,040.0 ms  1,742.8 ms  1,886.3 ms    1,886.3 ms  42.6%

The all-to-alls are 1,691 ms of the interconnect: 16 chips in a ring send half of all that they have over two
links. Compiling takes about 150 s of one core.
"""

import ml_collections

from configs.pod import moe_parts

WIDTH, LAYERS, VOCAB_SIZE = 2_048, 28, 102_400
EXPERTS, CHOICES, EXPERT_WIDTH, SHARED = 64, 6, 1_408, 2
BATCH = 1_024
AXES = dict(data=1, fsdp=-1, expert=16)


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folders, steps."""
    shared = dict(name="moe.feed_forward.Gated", width=SHARED * EXPERT_WIDTH)
    return moe_parts.language_model(
        argument,
        width=WIDTH,
        num_layers=LAYERS,
        vocab_size=VOCAB_SIZE,
        feed_forward=moe_parts.mixture(EXPERTS, CHOICES, EXPERT_WIDTH, shared=shared),
        batch=BATCH,
        axes=AXES,
        learning_rate=4.2e-4,
    )
