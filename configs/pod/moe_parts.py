"""What the sparse language models of this folder share."""

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import parts as common
from configs.language_model import corpora, parts

CAPACITY_FACTOR = 1.25
LENGTH = 2_048


def language_model(
    argument: str | None,
    *,
    width: int,
    num_layers: int,
    vocab_size: int,
    feed_forward: dict,
    batch: int,
    axes: dict[str, int],
    learning_rate: float,
) -> ml_collections.ConfigDict:
    """Returns the config of a causal language model on documents of 2,048 tokens, in bfloat16.

    Args:
      argument: folders (joined by +), steps.
      width: of the model; attention has heads of 128.
      num_layers: all of them alike.
      vocab_size: of the tokenizer to train, and of two tables.
      feed_forward: spec of a layer, see `mixture`.
      batch: rows of a step.
      axes: sizes of mesh axes.
      learning_rate: the highest.
    """
    given = parse_argument(argument, {"folders": "fairytaleqa+medquad+cranfield", "steps": 10_000})
    config = corpora.get_config(f"folders={given.folders},length={LENGTH},batch={batch},steps={given.steps}")
    config.tokenizer.vocab_size = vocab_size
    decoder = parts.decoder(vocab_size, width, num_layers, feed_forward, dtype="bfloat16")
    decoder["block"]["attention"]["heads"] = width // 128
    decoder.update(
        unroll=1,
        output=dict(name="backbones.embedding.TokenEmbedding", vocab_size=vocab_size, width=width),
        remat=dict(name="backbones.remat.save_nothing"),
    )
    config.task = parts.causal(decoder, parts.auxiliary(0.01))
    config.optimizer = common.adam(learning_rate, given.steps, weight_decay=0.1)
    config.mesh = mesh(shared="shared" in feed_forward)
    config.mesh.axes.update(axes)
    return config


def mixture(num_experts: int, k: int, width: int, **fields: dict) -> dict:
    """SwiGLU experts with capacity for 1.25 times what balance would take; their tokens travel to them."""
    return dict(
        name="moe.mixture.Mixture",
        router=dict(name="moe.routers.TopK", num_experts=num_experts, k=k, renormalize=False),
        experts=dict(name="moe.experts.Gated", width=width),
        dispatcher=dict(
            name="moe.expert_parallel.AllToAll",
            capacity=dict(name="moe.capacity.Capacity", factor=CAPACITY_FACTOR, tokens=LENGTH),
        ),
        **fields,
    )


def mesh(*, shared: bool) -> dict:
    """As `parts.expert_mesh`, with a second table for the output."""
    layout = parts.expert_mesh(shared=shared)
    return layout | dict(parameters=(("output/table", ("tensor", "fsdp")), *layout["parameters"]))
