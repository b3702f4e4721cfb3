"""Names for activations, by which a config says how they lie on the mesh.

    x_BLD = named(x_BLD, "residual")

A module names an array and knows nothing of meshes. Where a function is traced inside `constrained`, the
first rule whose expression is found in the name constrains the array; elsewhere `named` does nothing. The
names:

    table      [V, D]         token vectors where they are looked up
    embedded   [B, L, D]      tokens as vectors, before the first layer
    residual   [B, L, D]      what leaves a layer
    heads      [B, H, L, d]   queries, keys and values of an attention
    hidden     [B, L, F]      inside a feed-forward layer
    experts    [..., F]       inside the experts of a sparse one, laid out by the dispatcher
    logits     [B, L, V]      of a decoder
    vectors    [B, D]         what leaves a tower

The rules reach `named` through a context variable, as jax's own mesh and precision do: a module would else
hand them down through every layer.
"""

import contextlib
import contextvars
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from training.build import SpecError
from training.mesh import Rule, fit


@dataclasses.dataclass
class _Active:
    mesh: Mesh
    rules: Sequence[Rule]
    seen: dict[str, None] = dataclasses.field(default_factory=dict)  # names, in order


_active: contextvars.ContextVar[_Active | None] = contextvars.ContextVar("activations", default=None)


def named(x: jax.Array, name: str) -> jax.Array:
    """Returns x, placed as the rules in force say of activations of this name.

    Raises:
      SpecError: a rule does not fit the shape, or an axis of the mesh does not divide.
    """
    active = _active.get()
    if active is None:
        return x
    active.seen[name] = None
    for pattern, rule_spec in active.rules:
        if re.search(pattern, name):
            try:
                spec = fit(rule_spec, x.shape, active.mesh, f"activation {name}")
            except ValueError as error:
                raise SpecError(f"config.mesh.activations: {error}") from None
            return jax.lax.with_sharding_constraint(x, NamedSharding(active.mesh, spec))
    return x


@contextlib.contextmanager
def _constrained(mesh: Mesh, rules: Sequence[Rule]) -> Iterator[_Active]:
    active = _Active(mesh, rules)
    token = _active.set(active)
    try:
        yield active
    finally:
        _active.reset(token)


def constrained(
    function: Callable[..., Any], mesh: Mesh, rules: Sequence[Rule], *, all_used: bool = True
) -> Callable[..., Any]:
    """Returns the function, whose named activations lie as the rules say where it is traced.

    Args:
      function: is traced by jax.jit or the like.
      mesh: the devices.
      rules: see training.mesh.Layout.activations.
      all_used: whether a rule that matches no name is an error.

    Raises:
      SpecError (when traced): a rule matches nothing, and the names there are; or see `named`.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        with _constrained(mesh, rules) as active:
            result = function(*args, **kwargs)
        for pattern, _ in rules if all_used else ():
            if not any(re.search(pattern, name) for name in active.seen):
                raise SpecError(
                    f"config.mesh.activations: {pattern!r} is found in no activation; there are "
                    f"{', '.join(active.seen) or 'none'}"
                )
        return result

    return run
