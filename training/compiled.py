"""The compiled step: one program for each shape of batch, with what it costs said when it is made."""

import time
from collections.abc import Callable
from typing import Any

import jax

from training.log import Log, since
from training.step import Window
from training.task import Batch, TrainState


class CompiledSteps:
    """Compiles `step` once for each shape of batch, so that compiling is told from training.

    Args:
      step: `(state, window, batch, key) -> (state, window, number)`, see training.step.watched; the memory
        of the state and the window is used again.
      log: is told what compiling took.
    """

    def __init__(self, step: Callable[..., tuple[TrainState, Window, jax.Array]], log: Log):
        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._log = log
        self._compiled: dict[Any, Callable] = {}

    def is_new(self, batch: Batch) -> bool:
        """Whether the next call with such a batch compiles first."""
        return _shapes(batch) not in self._compiled

    def __call__(
        self, state: TrainState, window: Window, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Window, jax.Array]:
        shapes = _shapes(batch)
        if shapes not in self._compiled:
            start = time.monotonic()
            self._compiled[shapes] = self._step.lower(state, window, batch, key).compile()
            self._log.add_compilation(time.monotonic() - start)
            names = ", ".join(f"{name} {list(shape)}" for name, shape in shapes if name.endswith("tokens"))
            self._log.say(f"compiled the step{f' for {names}' if names else ''} in {since(start)}")
        return self._compiled[shapes](state, window, batch, key)


def _shapes(batch: Batch) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, batch[name].shape) for name in sorted(batch))
