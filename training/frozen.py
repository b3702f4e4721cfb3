"""Parameters that a training leaves as they are: no gradient is computed of them, and no optimizer keeps
anything for them.

A Task says which by `frozen`, regular expressions of which one is found in their paths. They stay parameters:
they are placed by the same rules, warm-started, and in every checkpoint.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import optax

from training.paths import check_patterns, map_with_path


def of(task: Any) -> tuple[str, ...]:
    """Returns the expressions of a Task; none where it says nothing.

    Raises:
      ValueError: they are one string, whose letters would be found everywhere.
    """
    patterns = getattr(task, "frozen", ())
    if isinstance(patterns, str):
        raise ValueError(f"frozen is {patterns!r}; allowed: a sequence of expressions, ({patterns!r},)")
    return tuple(patterns)


def stopped(params: Any, patterns: Sequence[str]) -> Any:
    """Returns the parameters, the frozen ones without a gradient."""
    if not patterns:
        return params
    stop = lambda path, leaf: jax.lax.stop_gradient(leaf) if _found(patterns, path) else leaf
    return map_with_path(stop, params)


def left_out(
    optimizer: optax.GradientTransformation, patterns: Sequence[str]
) -> optax.GradientTransformation:
    """Returns the optimizer of all parameters but the frozen ones, which keep no state and get no update.

    Raises:
      SpecError: once parameters are there: an expression is found in no path.
    """
    if not patterns:
        return optimizer

    def labels(params: Any) -> Any:
        check_patterns(patterns, params, "frozen")
        return map_with_path(lambda path, _: "frozen" if _found(patterns, path) else "trained", params)

    return optax.partition({"frozen": optax.set_to_zero(), "trained": optimizer}, labels)


def trained(params: Any, patterns: Sequence[str]) -> int:
    """Returns how many numbers of the parameters are trained."""
    size = lambda path, leaf: 0 if _found(patterns, path) else leaf.size
    return sum(jax.tree.leaves(map_with_path(size, params)))


def _found(patterns: Sequence[str], path: str) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)
