"""Parameters by their path, such as `model/query/encoder/embed/table`, picked by regular expressions."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax


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
    """Raises ValueError where a pattern is no regular expression, or is found in no path of the tree."""
    found = paths(tree)
    for pattern in patterns:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{what} {pattern!r} is no regular expression: {error}") from None
        if not any(map(compiled.search, found)):
            raise ValueError(f"{what} {pattern!r} is found in no parameter; there are {_shown(found)}")


def _shown(found: Sequence[str]) -> str:
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
