"""What a model and its sparse layers cost, worked out from shapes; nothing is computed.

Parameters. A parameter is active for a token that meets it. Of its experts' a token meets the share

    edges / (tokens E)

whatever the router: k / E where each token chooses k experts, and R / (S E) where experts choose. All other
parameters are active, the tables of embeddings too.

Operations are counted from the jaxpr (`training.flops`): of experts with capacity for all places, those that
stay empty too.

Bytes that a layer moves in its forward pass, on a device with its share of T tokens, N places of D values of
b bytes, and experts of W weights each:

    dispatch    2 N D b            a token is read and written for each place
    combine     (N + T) D b        places are read, tokens written
    weights     E W b              read once

Expert-parallel layers also send: an all-to-all of N D b bytes there, and one back; n devices along the mesh
axis `expert` send (n - 1) / n of them. Each device then has E / n experts. The backward pass takes two
all-to-alls more, and another two where it computes the forward pass again.

Dimensions: E experts, T tokens, N places, D width; G groups, S tokens of a group, R edges of a group.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from moe.mixture import Mixture
from moe.routing import Routing
from training import paths
from training.flops import Flops

# Kinds of parameters and operations, by the names of modules in a path; the first that is found counts.
_KINDS = (
    ("experts", r"(^|/)experts(/|$)"),
    ("routers", r"(^|/)router(/|$)"),
    ("attention", r"(^|/)(cross_)?attention(/|$)"),
    ("dense feed-forward", r"(^|/)feed_forward(/|$)"),
    ("tables", r"(^|/)(embed|output)(/|$)"),
)
DISPATCH, OTHER = "dispatch", "other"
KINDS = (*(name for name, _ in _KINDS), DISPATCH, OTHER)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A sparse layer, or several alike that are stacked, in one call of a model.

    Attributes:
      path: of its module, such as "block/feed_forward".
      copies: how many layers.
      num_experts: E.
      tokens: T of a layer, padding included.
      edges: choices of an expert by a token, or of a token by an expert, those of padding included.
      places: N, rows that the experts compute.
      width: D.
      itemsize: b.
      weights: W, of one expert.
      exchanged: whether tokens travel to their experts.
    """

    path: str
    copies: int
    num_experts: int
    tokens: int
    edges: int
    places: int
    width: int
    itemsize: int
    weights: int
    exchanged: bool

    @property
    def active(self) -> float:
        """The share of the experts' parameters that a token meets."""
        return self.edges / (self.tokens * self.num_experts)


@dataclasses.dataclass(frozen=True)
class Moved:
    """Bytes on one device, of one layer's forward pass.

    Attributes:
      dispatch, combine, weights: between memory and chip.
      exchange: what each of its two all-to-alls is given; 0 where no token travels.
      sent: what a device sends in each.
    """

    dispatch: float
    combine: float
    weights: float
    exchange: float
    sent: float


def sparse_layers(function: Callable, params: Any, *args: Any) -> list[Layer]:
    """Finds the sparse layers in a call of a function; [] in a dense model.

    Args:
      function: of `params` and the others, such as a Task's loss; it is traced, with no mesh in force.
      params: shapes of its parameters, with those of the model under "model".
      *args: shapes.
    """
    leaves = dict(zip(paths.paths(params["model"]), jax.tree.leaves(params["model"]), strict=True))
    sizes: dict[str, tuple[int, ...]] = {}  # by module: the shape of its last input
    routings: dict[str, Routing] = {}
    travels: dict[str, bool] = {}
    calls: dict[tuple[int, str], Layer] = {}  # by call of a stack and module; a stack is traced twice
    stacks = [0]
    count = iter(range(1, 1 << 30))

    def watch(call: Callable, given: Sequence[Any], named: Mapping[str, Any], context: Any) -> Any:
        module, path = context.module, "/".join(context.module.path)
        if context.method_name != "__call__":
            return call(*given, **named)
        if hasattr(module, "num_layers"):
            stacks.append(next(count))
        first = given[0] if given else None
        if hasattr(first, "shape"):
            sizes[path] = first.shape
        if isinstance(module, Mixture):
            travels[path] = module.dispatcher.exchanges
        parent = "/".join(module.path[:-1])
        if module.path[-1:] == ("experts",) and hasattr(first, "matmul"):
            held = sum(leaf.size for name, leaf in leaves.items() if name.startswith(f"{path}/"))
            seen = sum(leaf.size for leaf in jax.tree.leaves(module.variables.get("params", {})))
            calls[stacks[-1], parent] = Layer(
                path=parent,
                copies=held // seen if seen else 1,  # a stack calls one layer at a time
                num_experts=first.num_experts,
                tokens=sizes[parent][0] * sizes[parent][1],
                weights=seen // first.num_experts,
                exchanged=travels.get(parent, False),
                **_rows(first.values, routings.get(parent)),
            )
        found = call(*given, **named)
        if isinstance(found, Routing):
            routings[parent] = found
        if hasattr(module, "num_layers"):
            stacks.pop()
        return found

    with nn.intercept_methods(watch):
        jax.eval_shape(function, params, *args)
    return list(calls.values())


def _rows(values: jax.Array, routing: Routing | None) -> dict[str, int]:
    """What a layer's rows tell of it."""
    places, width = values.size // values.shape[-1], values.shape[-1]
    edges = places if routing is None else routing.token.size
    return dict(edges=edges, places=places, width=width, itemsize=values.dtype.itemsize)


def kind(path: str) -> str:
    """Returns of which of KINDS a module or a parameter is.

    >>> kind("model/block/feed_forward/experts/in"), kind("block/attention/query/kernel"), kind("head")
    ('experts', 'attention', 'other')
    """
    return next((name for name, pattern in _KINDS if re.search(pattern, path)), OTHER)


def parameters(params: Any, layers: Sequence[Layer]) -> dict[str, tuple[int, float]]:
    """Returns how many parameters there are of each kind, and how many of them are active for a token.

    Args:
      params: shapes, with those of the model under "model".
      layers: of `sparse_layers`; of several calls of a layer the mean over tokens counts.
    """
    found: dict[str, tuple[int, float]] = {}
    for path, leaf in zip(paths.paths(params), jax.tree.leaves(params), strict=True):
        total, active = found.get(kind(path), (0, 0.0))
        ours = [layer for layer in layers if path.startswith(f"model/{layer.path}/experts/")]
        tokens = sum(layer.tokens for layer in ours)
        share = sum(layer.active * layer.tokens for layer in ours) / tokens if ours else 1.0
        found[kind(path)] = total + leaf.size, active + share * leaf.size
    return found


def operations(counted: Flops, layers: Sequence[Layer]) -> dict[str, int]:
    """Returns the floating-point operations of each kind; those of a sparse layer that are in none of its
    parts are its dispatch."""
    found: dict[str, int] = {}
    for path, number in counted.modules.items():
        of_layer = any(path == layer.path or path.endswith(f"/{layer.path}") for layer in layers)
        name = DISPATCH if of_layer else kind(path)
        found[name] = found.get(name, 0) + number
    return found


def moved(layer: Layer, *, devices: int = 1, expert_parts: int = 1) -> Moved:
    """Returns what one device moves and sends, by the formulas above.

    Args:
      layer: of `sparse_layers`.
      devices: that the tokens are split over.
      expert_parts: n, the size of the mesh axis `expert`.
    """
    row = layer.width * layer.itemsize
    places, tokens = layer.places / devices, layer.tokens / devices
    travels = layer.exchanged and expert_parts > 1
    held = layer.num_experts / (expert_parts if travels else 1)
    exchange = places * row if travels else 0.0
    return Moved(
        dispatch=2 * places * row,
        combine=(places + tokens) * row,
        weights=held * layer.weights * layer.itemsize,
        exchange=exchange,
        sent=exchange * (expert_parts - 1) / expert_parts,
    )
