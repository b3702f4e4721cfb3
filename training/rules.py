"""Where the parameters and the optimizer's state lie on a mesh, by regular expressions over paths."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from training import paths
from training.build import SpecError
from training.mesh import Rule, fit
from training.task import TrainState


def shardings(
    state: TrainState, mesh: Mesh, rules: Sequence[Rule], *, of_state: Sequence[Rule] = ()
) -> TrainState:
    """Returns the sharding of each array of a state.

    A parameter and its moving average lie as the first rule says whose expression is found in its path; what
    the optimizer keeps for a parameter lies as that does, and a factored moment as what it has left of its
    parameter's axes. All else is whole on every device, but for what `of_state` says of the Task's state.

    Args:
      state: arrays, or their shapes (jax.eval_shape).
      mesh: the devices.
      rules: see training.mesh.Layout.parameters.
      of_state: likewise for the Task's state, see training.task.Task.state_rules.

    Raises:
      SpecError: a rule matches no parameter, does not fit its shape, or an axis of the mesh does not divide;
        rule, parameter, shape and axis are named.
    """
    paths.check_patterns([pattern for pattern, _ in rules], state.params, "config.mesh.parameters")
    specs = {path: _spec_of(path, leaf, mesh, rules) for path, leaf in _leaves(state.params)}
    shapes = {path: leaf.shape for path, leaf in _leaves(state.params)}

    def place(path: str, leaf: Any) -> NamedSharding:
        parts = path.split("/")
        names = ("/".join(parts[first:]) for first in range(len(parts)))
        name = next((name for name in names if name in specs), None)
        like = None if name is None else _like(specs[name], shapes[name], tuple(leaf.shape))
        return NamedSharding(mesh, PartitionSpec() if like is None else like)

    whole = lambda tree: jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)
    of_parameters = lambda tree: paths.map_with_path(place, tree)
    return TrainState(
        step=whole(state.step),
        params=of_parameters(state.params),
        state=paths.map_with_path(
            lambda path, leaf: NamedSharding(mesh, _spec_of(path, leaf, mesh, of_state)), state.state
        ),
        opt_state=of_parameters(state.opt_state),
        average=of_parameters(state.average),
    )


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return list(zip(paths.paths(tree), jax.tree.leaves(tree), strict=True))


def _spec_of(path: str, leaf: Any, mesh: Mesh, rules: Sequence[Rule]) -> PartitionSpec:
    for pattern, rule_spec in rules:
        if re.search(pattern, path):
            try:
                return fit(rule_spec, leaf.shape, mesh, f"parameter {path}")
            except ValueError as error:
                raise SpecError(f"config.mesh.parameters: {error}") from None
    return PartitionSpec()


def _like(spec: PartitionSpec, shape: tuple[int, ...], other: tuple[int, ...]) -> PartitionSpec | None:
    """The spec of what an optimizer keeps for a parameter: of its shape, or of that less one axis."""
    if other == shape:
        return spec
    full = (*spec, *(None,) * (len(shape) - len(spec)))
    for axis in reversed(range(len(shape))):
        if other == shape[:axis] + shape[axis + 1 :]:
            return PartitionSpec(*full[:axis], *full[axis + 1 :])
    return None
