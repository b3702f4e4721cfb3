"""What the cross-encoder configs of this folder are made of: plain dicts, to be read and varied."""

from configs.dual_encoder import parts


def transformer(vocab_size: int, width: int, num_layers: int, dtype: str = "float32") -> dict:
    """The Transformer of `configs.dual_encoder.parts`, with a vector for each of the four segments of a pair,
    whose positions are averaged for the score."""
    tower = parts.transformer_tower(vocab_size, width, num_layers, dtype)
    segments = dict(name="backbones.positions.LearnedSegments", num_segments=4)
    return dict(
        name="cross_encoder.model.CrossEncoder",
        encoder=tower["encoder"] | dict(position=segments),
        pooler=tower["pooler"],
        dropout=0.0,
    )


def text(query_length: int, document_length: int) -> dict:
    """Lengths, with tokens marked that both sides have; see cross_encoder.pairs.PairSettings."""
    return dict(query_length=query_length, document_length=document_length, mark_matches=True)


def ranking(model: dict, objective: str) -> dict:
    """The Task, with a loss of cross_encoder.losses."""
    if objective not in ("pointwise", "localized_contrastive"):
        raise ValueError(
            f"config argument objective={objective!r}; allowed: pointwise, localized_contrastive"
        )
    return dict(
        name="cross_encoder.task.Ranking",
        model=model,
        objective=dict(name=f"cross_encoder.losses.{objective}"),
    )


def mesh() -> dict:
    """All devices on the axis `data`; with rules by which `fsdp` and `tensor` split a Transformer where they
    are used."""
    layout = parts.transformer_mesh()
    rules = tuple(rule for rule in layout["activations"] if rule[0] != "vectors")  # a tower's
    return layout | dict(activations=rules)
