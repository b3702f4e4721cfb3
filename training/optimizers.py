"""Optimizers are optax's; here is only what a config needs to put several together.

A config names one of optax's, such as `optax.adamw`, `optax.lion` or `optax.adafactor`, and may wrap it:

    optimizer = dict(
        name="training.optimizers.by_path",
        rules=(
            ("embed", dict(name="optax.set_to_zero")),                     # frozen
            ("layers_0", dict(name="optax.adamw", learning_rate=1e-4)),    # a group of its own
            (".*", dict(name="optax.adamw", learning_rate=1e-3)),
        ),
    )

In a mixture of experts, "router/" is found in the paths of a router alone, "experts/" in those of its
experts. An optimizer that factors its moments must be told that these are many matrices, or it factors across
experts where there are more of them than a matrix has rows or columns:

    rules=(
        ("router/", dict(name="optax.adamw", learning_rate=1e-4)),
        ("experts/", dict(name="training.optimizers.stacked", axes=2, optimizer=factored)),
        (".*", factored),  # such as dict(name="optax.adafactor", learning_rate=1e-3)
    )
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from training.build import SpecError
from training.paths import check_expressions, check_patterns, map_with_path, paths, shown


def clipped(optimizer: optax.GradientTransformation, *, max_norm: float) -> optax.GradientTransformation:
    """Clips the gradient to a global norm of `max_norm` before `optimizer` sees it.

    The norm is over what this wraps: put it inside a group of `by_path` to leave out what is frozen.

    Raises:
      ValueError: `max_norm` is not positive, or `optimizer` is incomplete.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}; it must be positive")
    return optax.chain(optax.clip_by_global_norm(max_norm), _complete(optimizer, "optimizer"))


def by_path(rules: Sequence[tuple[str, optax.GradientTransformation]]) -> optax.GradientTransformation:
    """Gives every parameter the optimizer of the first rule whose regular expression is found in its path.

    `optax.set_to_zero` freezes. Each optimizer sees the gradients of its own parameters alone.

    Args:
      rules: (regular expression, optimizer) pairs; paths are such as `model/query/encoder/embed/table`.

    Raises:
      SpecError: no rules, a bad expression, an incomplete optimizer; and once parameters are there: a
        parameter without a rule, or a rule that no parameter comes to.
    """
    if not rules:
        raise SpecError("rules is empty; allowed: pairs of a regular expression and an optimizer")
    for rule in rules:
        if not isinstance(rule, (tuple, list)) or len(rule) != 2 or not isinstance(rule[0], str):
            raise SpecError(f"rules has {rule!r}; allowed: pairs of a regular expression and an optimizer")
    patterns = [pattern for pattern, _ in rules]
    check_expressions(patterns, "rules")

    def label(path: str, leaf: Any) -> str:
        del leaf
        for number, pattern in enumerate(patterns):
            if re.search(pattern, path):
                return str(number)
        raise SpecError(f"rules: no rule is for the parameter {path}; a last rule '.*' is for all others")

    def labels(params: Any) -> Any:
        # optax asks for gradients too, some of which are masked; their paths are the same.
        labeled = map_with_path(label, params)
        idle = {str(i) for i in range(len(patterns))} - set(jax.tree.leaves(labeled))
        for number in sorted(idle):
            raise SpecError(
                f"rules: {patterns[int(number)]!r} is the first rule of no parameter; there are "
                f"{shown(paths(params))}"
            )
        return labeled

    optimizers = {
        str(number): _complete(optimizer, f"rules[{number}]") for number, (_, optimizer) in enumerate(rules)
    }
    return optax.partition(optimizers, labels)


def stacked(optimizer: optax.GradientTransformation, *, axes: int) -> optax.GradientTransformation:
    """Treats each parameter as a stack of parameters along its first axes, each with an optimizer of its own.

    Nothing that `optimizer` computes of a parameter as a whole then mixes them: factored moments, clipping by
    a parameter's root mean square, steps in proportion to it (all three in `optax.adafactor`), or a clipping
    to a norm; put `clipped` around it to clip the gradient of all.

    Args:
      optimizer: of one parameter of the stack.
      axes: how many of the first axes make the stack: 2 for the experts of layers that are scanned, [Y, E,
        ...]; 1 for other parameters of such layers.

    Raises:
      ValueError: axes is below 1, `optimizer` is incomplete; and once parameters are there: one has fewer
        axes.
    """
    optimizer = _complete(optimizer, "optimizer")
    if axes < 1:
        raise ValueError(f"axes is {axes}; allowed: an integer of at least 1")

    def each(function: Callable) -> Callable:
        for _ in range(axes):
            function = jax.vmap(function)
        return function

    def init(params: Any) -> tuple[Any, ...]:
        for path, leaf in zip(paths(params), jax.tree.leaves(params), strict=True):
            if leaf.ndim < axes:
                raise ValueError(
                    f"axes is {axes}; allowed for {path} of shape {leaf.shape}: at most {leaf.ndim}"
                )
        return tuple(each(optimizer.init)(one) for one in _one_by_one(params))

    def update(updates: Any, state: tuple[Any, ...], params: Any = None) -> tuple[Any, tuple[Any, ...]]:
        given = [_one_by_one(updates), state] + ([] if params is None else [_one_by_one(params)])
        found = [each(optimizer.update)(*one) for one in zip(*given, strict=True)]
        leaves = [jax.tree.leaves(new)[0] for new, _ in found]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), tuple(kept for _, kept in found)

    return optax.GradientTransformation(init, update)


def _one_by_one(tree: Any) -> list[Any]:
    """Trees of one leaf each, at the path that it has in the whole: by that `training.rules` places what an
    optimizer keeps for it."""

    def alone(path: str, leaf: Any) -> Any:
        for part in reversed(path.split("/")):
            leaf = {part: leaf}
        return leaf

    return [alone(path, leaf) for path, leaf in zip(paths(tree), jax.tree.leaves(tree), strict=True)]


def scaled(optimizer: optax.GradientTransformation, *, factor: float) -> optax.GradientTransformation:
    """Multiplies the updates of `optimizer`: a learning rate of its own for a group of `by_path`."""
    return optax.chain(_complete(optimizer, "optimizer"), optax.scale(factor))


def all_but(params: Any, *, patterns: Sequence[str]) -> Any:
    """A mask for weight decay: True for each parameter in whose path none of the patterns is found.

        dict(name="optax.adamw", mask=dict(name="training.optimizers.all_but", patterns=("norm", "bias")))

    Raises:
      ValueError: a pattern that is found in no path.
    """
    check_patterns(patterns, params, "patterns")
    return map_with_path(lambda path, _: not any(re.search(p, path) for p in patterns), params)


def matrices(params: Any, *, also_not: Sequence[str] = ()) -> Any:
    """A mask for weight decay: True for tables and kernels; not for norms, biases and other vectors.

    Vectors are told by the last part of their path (`scale`, `bias`, or a name that starts with `log_`) and
    by having one axis: where layers are stacked, their vectors have two.

    Args:
      params: the parameters.
      also_not: regular expressions of other paths to leave out.
    """
    if also_not:
        check_patterns(also_not, params, "also_not")
    vector = re.compile(r"(^|/)(scale|(\w+_)?bias|log_[^/]*)$")

    def decays(path: str, leaf: Any) -> bool:
        if vector.search(path) or any(re.search(pattern, path) for pattern in also_not):
            return False
        return leaf.ndim > 1

    return map_with_path(decays, params)


def _complete(optimizer: Any, what: str) -> optax.GradientTransformation:
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"{what} is {optimizer!r}, not an optax transformation; is an argument missing?")
    return optimizer
