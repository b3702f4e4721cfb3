"""Parameters and state from another run to begin with: matched by path after rewriting, and every one
accounted for."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from training.build import SpecError
from training.checkpoints import read_best_params
from training.paths import check_expressions, map_with_path, paths

Rule = tuple[str, str | Sequence[str] | None]


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the parameters of either side.

    Attributes:
      loaded: target paths whose values came from the other run.
      skipped: source paths that were not used, with the reason.
      new: target paths that keep their fresh values.
    """

    loaded: tuple[str, ...]
    skipped: dict[str, str]
    new: tuple[str, ...]

    def lines(self) -> list[str]:
        """Returns the report as text, one line a parameter that was skipped or is new."""
        return [
            f"loaded {len(self.loaded)} parameters, skipped {len(self.skipped)}, {len(self.new)} are new",
            *(f"  skipped {path}: {reason}" for path, reason in self.skipped.items()),
            *(f"  new {path}" for path in self.new),
        ]


def load(params: Any, state: Any, run_dir: str | Path, rules: Sequence[Rule] = ()) -> tuple[Any, Any, Report]:
    """Returns `params` and `state` with the values of another run's best checkpoint, and a report.

    Args:
      params: fresh parameters.
      state: the Task's fresh state, such as the biases of routers; its paths begin with the name of its
        collection, and rules are for them too.
      run_dir: the other run.
      rules: (regular expression, replacement), applied to the other run's paths in turn, the first that is
        found deciding; a replacement of None leaves the parameter out, and one of several makes as many
        copies, such as a tied tower's for two. A path that no rule is for stays.

    Raises:
      CheckpointError: the other run has no best checkpoint, or it is damaged.
      SpecError: a rule for no parameter, two parameters that come to one path, or nothing to load.
    """
    _, their_params, their_state = read_best_params(Path(run_dir) / "checkpoints")
    merged, report = merge({**params, **state}, {**their_params, **their_state}, rules)
    return {name: merged[name] for name in params}, {name: merged[name] for name in state}, report


def _rewritten(pattern: str, replacement: str, path: str) -> str:
    try:
        return re.sub(pattern, replacement, path)
    except re.error as error:
        raise SpecError(f"init_from.rules: {replacement!r} cannot replace {pattern!r}: {error}") from None


def merge(params: Any, source: Any, rules: Sequence[Rule] = ()) -> tuple[Any, Report]:
    """As `load`, from parameters that are there."""
    check_expressions([pattern for pattern, _ in rules], "init_from.rules")
    wanted = dict(zip(paths(params), jax.tree.leaves(params), strict=True))
    found: dict[str, tuple[str, Any]] = {}
    skipped: dict[str, str] = {}
    used = set()
    for path, value in zip(paths(source), jax.tree.leaves(source), strict=True):
        targets = [path]
        for number, (pattern, replacement) in enumerate(rules):
            if re.search(pattern, path):
                used.add(number)
                copies = [replacement] if isinstance(replacement, str) else replacement or []
                targets = [_rewritten(pattern, copy, path) for copy in copies]
                break
        if not targets:
            skipped[path] = "a rule leaves it out"
        for target in targets:
            if target not in wanted:
                skipped[path] = f"there is no {target}"
            elif np.shape(value) != np.shape(wanted[target]):
                skipped[path] = f"its shape is {np.shape(value)}, that of {target} {np.shape(wanted[target])}"
            elif target in found:
                raise SpecError(f"rules: {found[target][0]} and {path} both become {target}")
            else:
                found[target] = path, value
    for number, (pattern, _) in enumerate(rules):
        if number not in used:
            raise SpecError(f"rules: {pattern!r} is for no parameter; there are {', '.join(paths(source))}")
    if not found:
        raise SpecError(f"init_from: no parameter could be loaded: {skipped}")

    def pick(path: str, leaf: Any) -> Any:
        return np.asarray(found[path][1], leaf.dtype) if path in found else leaf

    merged = map_with_path(pick, params)
    return merged, Report(tuple(found), skipped, tuple(path for path in wanted if path not in found))


def everywhere(params: Any, sources: Sequence[Any]) -> tuple[Any, Report]:
    """Puts the parameters of a module at every place where a module with all of them stands.

    A place may have further parameters, such as those of adapters: they stay new.

    Args:
      params: fresh parameters.
      sources: of the whole module, and then of parts of it, which are tried where the ones before do not fit.

    Returns:
      the parameters, and a report, in which a source path that no place took is skipped.

    Raises:
      SpecError: there is no such place; what comes nearest, and what it lacks, is named.
    """
    wanted = dict(zip(paths(params), jax.tree.leaves(params), strict=True))
    found: dict[str, Any] = {}
    taken: set[int] = set()
    nearest: tuple[int, str] = (0, "no path ends as theirs do")
    whole = {path: value for source in sources[:1] for path, value in _flat(source)}
    for source in sources:
        values = dict(_flat(source))
        anchor = next(iter(values))
        for place in [path.removesuffix(anchor) for path in wanted if f"/{path}".endswith(f"/{anchor}")]:
            problems = [_problem(place + path, value, wanted) for path, value in values.items()]
            first = next((problem for problem in problems if problem), None)
            nearest = max(nearest, (problems.count(None), f"under {place}: {first}")) if first else nearest
            if first is None and not any(place + path in found for path in values):
                found |= {place + path: value for path, value in values.items()}
                taken |= {id(value) for value in values.values()}
    if not found:
        raise SpecError(f"init_from: no place has all of its parameters; the nearest, {nearest[1]}")
    merged = map_with_path(lambda path, leaf: np.asarray(found.get(path, leaf), leaf.dtype), params)
    left = {path: "no place has it" for path, value in whole.items() if id(value) not in taken}
    return merged, Report(tuple(found), left, tuple(path for path in wanted if path not in found))


def _flat(tree: Any) -> list[tuple[str, Any]]:
    return list(zip(paths(tree), jax.tree.leaves(tree), strict=True))


def _problem(path: str, value: Any, wanted: Any) -> str | None:
    """Why a value cannot be put at a path, if it cannot."""
    if path not in wanted:
        return f"there is no {path}"
    if np.shape(value) != np.shape(wanted[path]):
        return f"{path} has the shape {np.shape(wanted[path])}, theirs {np.shape(value)}"
    return None
