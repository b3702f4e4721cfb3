"""From a config to the objects it names.

A spec is a mapping with a `name`, the dotted path of a callable, and its keyword arguments:

    objective = dict(name="dual_encoder.objectives.softmax.info_nce", temperature=0.05)

`build` imports the callable, builds nested specs first, and calls it. A function whose required
arguments are not all given becomes a `functools.partial` that waits for them: an objective, say,
is handed its arrays by the Task.
"""

import difflib
import functools
import importlib
import inspect
from collections.abc import Mapping
from typing import Any


class SpecError(ValueError):
    """A config names something that cannot be built; the message says what is valid."""


def build(spec: Any, where: str = "config") -> Any:
    """Returns what `spec` describes; anything that is not a spec or holds none is returned as it is.

    Args:
      spec: a mapping with `name`, a mapping or sequence that holds specs, or a plain value.
      where: what to call the spec in an error, such as "config.model".

    Raises:
      SpecError: an unknown path or argument; the valid ones are named.
    """
    if isinstance(spec, (list, tuple)):
        return type(spec)(build(item, f"{where}[{i}]") for i, item in enumerate(spec))
    if not isinstance(spec, Mapping):
        return spec
    values = {key: build(value, f"{where}.{key}") for key, value in spec.items() if key != "name"}
    if "name" not in spec:
        return values
    function = locate(spec["name"], where)
    check_arguments(function, values, where)
    if not inspect.isclass(function) and _missing(function, values):
        return functools.partial(function, **values)
    return _call(function, values, where)


def fill(kind: type, fields: Mapping[str, Any], where: str) -> Any:
    """Returns a settings object of `kind` with the given fields, checked as `build` checks arguments."""
    if not isinstance(fields, Mapping):
        raise SpecError(f"{where} is {fields!r}; expected the fields of {_title(kind)}")
    check_arguments(kind, fields, where)
    return _call(kind, fields, where)


def _call(function: Any, arguments: Mapping[str, Any], where: str) -> Any:
    try:
        return function(**arguments)
    except SpecError:
        raise
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):  # an error of its own kind says enough
            raise
        raise SpecError(f"{where}: {error}") from error


def locate(path: Any, where: str = "config") -> Any:
    """Imports the callable at a dotted path such as `dual_encoder.poolers.mean`.

    Raises:
      SpecError: no such module or attribute; the nearest valid names are given.
    """
    if not isinstance(path, str) or "." not in path:
        raise SpecError(f"{where}.name is {path!r}; expected a dotted path such as 'optax.adamw'")
    parts = path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:split])
        try:
            found = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # Only the absence of the module that was asked for means "look further up".
            if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
                continue
            raise
        for depth, attribute in enumerate(parts[split:]):
            if not hasattr(found, attribute):
                raise SpecError(
                    f"{where}.name is {path!r}; {'.'.join(parts[: split + depth])} has no {attribute!r}; "
                    f"{_nearest(attribute, [n for n in dir(found) if not n.startswith('_')])}"
                )
            found = getattr(found, attribute)
        if not callable(found):
            raise SpecError(f"{where}.name is {path!r}, which is not callable")
        return found
    raise SpecError(f"{where}.name is {path!r}; there is no module {parts[0]!r}")


def check_arguments(function: Any, arguments: Mapping[str, Any], where: str) -> None:
    """Raises SpecError if `function` does not take one of `arguments`, or is a class left incomplete."""
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        # `parent` and `name` are fields of every linen module, not of the config.
        valid = [
            n
            for n, p in parameters.items()
            if p.kind is not p.POSITIONAL_ONLY and n not in ("parent", "name")
        ]
        for argument in arguments:
            if argument not in valid:
                raise SpecError(
                    f"{where}.{argument}: {_title(function)} takes no {argument!r}; "
                    f"{_nearest(argument, valid)}"
                )
    missing = _missing(function, arguments)
    if inspect.isclass(function) and missing:
        raise SpecError(f"{where}: {_title(function)} needs {', '.join(missing)}")


def _missing(function: Any, arguments: Mapping[str, Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in variable and p.name not in arguments
    ]


def _title(function: Any) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}"


def _nearest(word: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(word, valid, n=3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"valid: {', '.join(sorted(valid)) or 'none'}"
