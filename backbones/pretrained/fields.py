"""The values of a config.json, each checked where it is read."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from backbones.pretrained.folder import PretrainedError

_tanh_gelu = functools.partial(nn.gelu, approximate=True)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
}


class Fields:
    """Reads a config. A value of null is taken as absent, as transformers does.

    Args:
      config: of config.json.
      where: for messages, such as the folder.
    """

    def __init__(self, config: Mapping[str, Any], where: Any):
        self._config = config
        self.where = where

    def get(self, name: str, *default: Any) -> Any:
        """Returns a value, or the default. Raises PretrainedError where there is neither."""
        value = self._config.get(name)
        if value is None and not default:
            raise PretrainedError(f"{self.where}: its config.json has no {name!r}")
        return default[0] if value is None else value

    def has(self, name: str) -> bool:
        """Returns whether there is a value other than null."""
        return self._config.get(name) is not None

    def null(self, name: str) -> bool:
        """Returns whether a value is null, and not merely absent."""
        return name in self._config and self._config[name] is None

    def count(self, name: str, *default: Any) -> int:
        """Returns a positive integer."""
        value = self.get(name, *default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(name, value, "an integer of at least 1")
        return value

    def divisor(self, name: str, of: str) -> int:
        """Returns a positive integer that divides another one."""
        value, whole = self.count(name), self.count(of)
        if whole % value:
            raise self.wrong(name, value, f"a divisor of {of}, {whole}")
        return value

    def number(self, name: str, *default: Any) -> float:
        """Returns a number."""
        value = self.get(name, *default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, value, "a number")
        return float(value)

    def one_of(self, name: str, allowed: Any, *default: Any) -> Any:
        """Returns a value that is in `allowed`."""
        value = self.get(name, *default)
        # True == 1 in Python, not in a config.
        if not any(value == one and type(value) is type(one) for one in allowed):
            raise self.wrong(name, value, ", ".join(map(repr, allowed)))
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Returns a truth value."""
        return self.one_of(name, (True, False), default)

    def only(self, **values: Any) -> None:
        """Raises PretrainedError where a field is there and is not the value that is all we have."""
        for name, value in values.items():
            self.one_of(name, (value,), value)

    def activation(self, name: str, *default: str) -> Callable[[jax.Array], jax.Array]:
        """Returns the function that a field names."""
        return ACTIVATIONS[self.one_of(name, tuple(ACTIVATIONS), *default)]

    def within(self, name: str) -> "Fields":
        """Returns the fields of an object in the config."""
        value = self.get(name)
        if not isinstance(value, Mapping):
            raise self.wrong(name, value, "an object")
        return Fields(value, f"{self.where}, {name}")

    def wrong(self, name: str, value: Any, allowed: str) -> PretrainedError:
        """The error that says what is allowed instead."""
        return PretrainedError(f"{self.where}: {name} is {value!r} in its config.json; allowed: {allowed}")
