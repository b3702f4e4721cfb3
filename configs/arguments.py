"""The ARGUMENT of `--config=FILE.py:ARGUMENT`, which every config file takes."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import ml_collections


def parse_argument(argument: str | None, defaults: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Parses the ARGUMENT of `--config=FILE.py:ARGUMENT`, `key=value` pairs joined by commas.

    A value may itself hold `=`, `:` and `,`: a comma ends it only before another key and `=`.

    Args:
      argument: the text; None or "" for none.
      defaults: the keys there are, with their default values; a value takes its default's type.

    Raises:
      ValueError: an unknown key, a missing `=`, or a value of the wrong type.
    """
    values = dict(defaults)
    keys = "|".join(map(re.escape, values))
    for part in re.split(rf",(?=(?:{keys})=)", argument) if argument else []:
        key, equals, text = part.partition("=")
        if not equals or key not in values:
            near = difflib.get_close_matches(key, list(values), n=2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"config argument {part!r}: expected key=value with a key of {', '.join(values)}{hint}"
            )
        kind = type(defaults[key])
        try:
            values[key] = text if kind is str else kind(text)
        except ValueError:
            raise ValueError(f"config argument {key}={text!r}: expected {kind.__name__}") from None
    return ml_collections.ConfigDict(values)


def needed_run(given: Any) -> str:
    """Returns the run directory that a recipe learns from. Raises ValueError where none is given."""
    if not given.run:
        raise ValueError(f"config argument run is empty; allowed with recipe={given.recipe}: a run directory")
    return given.run
