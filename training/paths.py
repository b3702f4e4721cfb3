"""Parameters by their path, such as `model/query/encoder/embed/table`, picked by regular expressions."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from training.build import SpecError


def path_of(keys: Sequence[Any]) -> str:
    """Returns a path of jax.tree_util as text, its parts joined by slashes."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def paths(tree: Any) -> list[str]:
    """Returns the path of every leaf, in the tree's order."""
    return [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_with_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Returns the tree of `function(path, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: function(path_of(keys), leaf), tree)


def check_patterns(patterns: Sequence[str], tree: Any, what: str) -> None:
    """Raises SpecError where a pattern is no regular expression, or is found in no path of the tree."""
    check_expressions(patterns, what)
    found = paths(tree)
    for pattern in patterns:
        if not any(map(re.compile(pattern).search, found)):
            raise SpecError(f"{what}: {pattern!r} is found in no parameter; there are {shown(found)}")


def check_expressions(patterns: Sequence[str], what: str) -> None:
    """Raises SpecError where a pattern is no regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise SpecError(f"{what}: {pattern!r} is no regular expression: {error}") from None


def shown(found: Sequence[str]) -> str:
    """Returns the first paths, for an error message."""
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
