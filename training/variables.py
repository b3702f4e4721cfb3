"""A model's variables as a Task has them: parameters, and all else as state."""

from typing import Any


def split(variables: Any) -> tuple[Any, Any]:
    """Returns (params, state) of what a module's `init` gives.

    Parameters are `{"model": ...}`. The state has every other collection, such as the balancing bias of
    routers; `{}` for a dense model.
    """
    state = {name: held for name, held in variables.items() if name != "params"}
    return {"model": variables["params"]}, state


def joined(params: Any, state: Any) -> dict[str, Any]:
    """Returns what the model is applied with."""
    return {"params": params["model"], **state}
