"""What else than itself the output of a token depends on, where tokens share experts.

Which of several tokens an expert serves may be a matter of the others: of texts that happen to be in the same
batch, so that strangers change a text's output and can read it off their own (Yona et al., 2024, "Stealing
User Prompts from Mixture of Experts"); of later tokens, so that a decoder would see what it is to predict; or
of earlier ones, so that decoding token by token with a cache is not the whole text at once.

Each part states its own facts in its own file: a router, a dispatcher or a feed-forward layer by a method

    dependence(train: bool) -> Dependence

A part of a mixture that states none is taken to depend on everything. A router and a dispatcher speak of the
tokens of one group, and `moe.mixture.Mixture` makes of it what holds for its groups. A feed-forward layer
that states none treats each token alone, as the contract of `moe.feed_forward` has it. What attention shows
is no matter of these facts.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Dependence:
    """What the output of a token depends on besides the token. `a | b` is where either does.

    Attributes:
      batch: other texts of the batch; of a router or dispatcher, other groups.
      later: tokens after it, in its text; of a router or dispatcher, in its group.
      earlier: tokens before it, likewise.
    """

    batch: bool = False
    later: bool = False
    earlier: bool = False

    def __or__(self, other: "Dependence") -> "Dependence":
        return Dependence(self.batch or other.batch, self.later or other.later, self.earlier or other.earlier)

    def __bool__(self) -> bool:
        return self.batch or self.later or self.earlier


NONE = Dependence()
GROUP = Dependence(later=True, earlier=True)
UNKNOWN = Dependence(batch=True, later=True, earlier=True)


class DependenceError(ValueError):
    """A model is used where a layer of it depends on what it must not."""


@nn.nowrap
def each_token_alone(self: nn.Module, train: bool) -> Dependence:
    """The method `dependence` of a part in which each token is served by itself."""
    del self, train
    return NONE


def stated(part: Any, train: bool) -> Dependence:
    """Returns what a router or dispatcher says of itself, or `UNKNOWN` where it says nothing."""
    return part.dependence(train) if _states(part) else UNKNOWN


def in_groups(found: Dependence, group_rows: int | None) -> Dependence:
    """Returns what holds for texts where `found` holds for the tokens of a group: what is before or after a
    token may be of another text, unless a group is one text."""
    mixed = group_rows != 1 and (found.later or found.earlier)
    return dataclasses.replace(found, batch=found.batch or mixed)


def of(module: nn.Module | None, *, train: bool = False) -> dict[str, tuple[nn.Module, Dependence]]:
    """Finds the layers of a model that state their facts.

    Args:
      module: the model; what it is made of is looked for in its fields, and in theirs.
      train: whether in training; capacities may differ.

    Returns:
      By the path of fields, such as "encoder.block.feed_forward": the layer, and what it depends on.
    """
    return {path: (layer, layer.dependence(train)) for path, layer in _layers(module, "")}


def group_rows(module: nn.Module) -> int:
    """Returns what the rows of a batch must be a multiple of: those that the groups of sparse layers have."""
    return math.lcm(*(getattr(layer, "group_rows", None) or 1 for layer, _ in of(module).values()))


def in_force(model: nn.Module, mesh: Mesh) -> contextlib.AbstractContextManager:
    """Returns the context in which a model that is not trained is traced and called for a mesh.

    Each device serves its own groups; one of the whole batch has to be left to the compiler, so there the
    mesh is not put in force.
    """
    whole = any(getattr(layer, "group_rows", 1) is None for layer, _ in of(model).values())
    return contextlib.nullcontext() if whole else jax.set_mesh(mesh)


def refuse_batch(module: nn.Module, doing: str, allowed: str) -> None:
    """Raises DependenceError where a text's output depends on the other texts of its batch.

    Args:
      module: the model, as it is used when nothing is trained.
      doing: what is refused, such as "encode".
      allowed: how to do it nevertheless, such as "--allow_batch_dependence".
    """
    for path, (layer, dependence) in of(module).items():
        if dependence.batch:
            raise DependenceError(
                f"{path}: what a text gets depends on the other texts of its batch "
                f"({describe(layer)}); allowed to {doing}: group_rows=1 and parts that serve each group by "
                f"itself (or all, evaluation_factor=inf), or {allowed}"
            )


def refuse_later(module: nn.Module, *, train: bool) -> None:
    """Raises DependenceError where a token's output depends on later tokens, which no decoder may see."""
    for path, (layer, dependence) in of(module, train=train).items():
        if dependence.later:
            raise DependenceError(
                f"{path}: what a token gets depends on later tokens ({describe(layer)}); allowed in a "
                "decoder: a router in which each token chooses, and a dispatcher without capacity or one "
                "with priority moe.capacity.by_position"
            )


def describe(layer: nn.Module) -> str:
    """Returns the kind of a layer and those of its parts that matter here."""
    fields = [field.name for field in dataclasses.fields(layer)]
    parts = []
    for name in ("router", "dispatcher"):
        if name in fields:
            part = getattr(layer, name)
            parts.append(f"{name} {type(part).__name__}{_capacity(part)}")
    if "group_rows" in fields:
        parts.append(f"group_rows {layer.group_rows}")
    return f"{type(layer).__name__}: {', '.join(parts)}" if parts else type(layer).__name__


def _states(part: Any) -> bool:
    """Of its class: a bound module that is asked for what it lacks sets itself up first."""
    return hasattr(type(part), "dependence")


def _capacity(part: Any) -> str:
    priority = getattr(getattr(part, "capacity", None), "priority", None)
    function = getattr(priority, "func", priority)  # a config's is a partial
    return "" if priority is None else f" with priority {getattr(function, '__name__', function)}"


def _layers(value: Any, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Yields the outermost modules with facts, those that stand in two places once for each."""
    if isinstance(value, nn.Module):
        if _states(value):
            yield path or type(value).__name__, value
            return
        parts = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if field.name not in ("parent", "name")
        }
    elif isinstance(value, Mapping):
        parts = value
    elif isinstance(value, (list, tuple)):
        parts = dict(enumerate(value))
    else:
        return
    for name, part in parts.items():
        yield from _layers(part, f"{path}.{name}" if path else str(name))
