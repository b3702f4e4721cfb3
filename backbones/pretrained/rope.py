"""Rotary positions as a config.json describes them, in the older form (rope_theta and rope_scaling) and the
newer one (rope_parameters)."""

import functools
from collections.abc import Callable

import jax

from backbones import positions
from backbones.pretrained.fields import Fields

Scaling = Callable[[jax.Array], jax.Array] | None


def rotary(fields: Fields, base: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The `rotate` of a config with one kind of layer.

    Args:
      fields: of config.json.
      base: where it says nothing.

    Raises:
      PretrainedError: a kind of scaling that we do not have, or only a part of each head is rotated.
    """
    if fields.has("rope_parameters"):
        found = fields.within("rope_parameters")
        base = found.number("rope_theta", base)
        scaling = scaling_of(found, fields)
    else:
        base = fields.number("rope_theta", base)
        scaling = scaling_of(fields.within("rope_scaling"), fields) if fields.has("rope_scaling") else None
    fields.only(partial_rotary_factor=1.0)
    return functools.partial(positions.rotary, base=base, scaling=scaling)


def scaling_of(found: Fields, fields: Fields) -> Scaling:
    """What an object of config.json does to the frequencies.

    Args:
      found: rope_scaling or rope_parameters.
      fields: the whole config.
    """
    found.only(partial_rotary_factor=1.0)
    field = "rope_type" if found.has("rope_type") else "type"  # the older name
    kind = found.one_of(field, ("default", "linear", "llama3"), "default")
    if kind == "default":
        return None
    if kind == "linear":
        return functools.partial(positions.slower, factor=found.number("factor"))
    longest = "original_max_position_embeddings"
    return functools.partial(
        positions.slower_when_long,
        factor=found.number("factor"),
        low=found.number("low_freq_factor"),
        high=found.number("high_freq_factor"),
        original_length=found.count(longest)
        if found.has(longest)
        else fields.count("max_position_embeddings"),
    )
