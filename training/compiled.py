"""The compiled step: one program for each shape of batch, with what it costs said when it is made."""

import time
from collections.abc import Callable
from typing import Any

import jax

from training import flops
from training.log import Log, since
from training.step import Window
from training.task import Batch, TrainState

_DEPTH = 5  # of modules whose share of the operations is said


class CompiledSteps:
    """Compiles `step` once for each shape of batch, so that compiling is told from training.

    Args:
      step: `(state, window, batch, key) -> (state, window, number)`, see training.step.watched; the memory
        of the state and the window is used again.
      log: is told what compiling took.
    """

    def __init__(self, step: Callable[..., tuple[TrainState, Window, jax.Array]], log: Log):
        self._step = step
        self._log = log
        self._compiled: dict[Any, Callable] = {}
        self._flops: dict[Any, flops.Flops] = {}

    def is_new(self, batch: Batch) -> bool:
        """Whether the next call with such a batch compiles first."""
        return _shapes(batch) not in self._compiled

    def __call__(
        self, state: TrainState, window: Window, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Window, jax.Array]:
        shapes = _shapes(batch)
        if shapes not in self._compiled:
            self._compile(shapes, state, window, batch, key)
        return self._compiled[shapes](state, window, batch, key)

    def flops(self, batch: Batch) -> int:
        """Returns the operations of a step with such a batch, which has been compiled."""
        return self._flops[_shapes(batch)].total

    def _compile(self, shapes: Any, state: TrainState, window: Window, batch: Batch, key: jax.Array) -> None:
        start = time.monotonic()
        # What comes out is what goes in at the next step, placed alike.
        kept = jax.tree.map(lambda x: x.sharding, (state, window))
        step = jax.jit(self._step, donate_argnums=(0, 1), out_shardings=(*kept, None))
        counted = flops.count(step, state, window, batch, key)
        compiled = step.lower(state, window, batch, key).compile()
        self._log.add_compilation(time.monotonic() - start)
        names = ", ".join(f"{name} {list(shape)}" for name, shape, _ in shapes if name.endswith("tokens"))
        self._log.say(
            f"compiled the step{f' for {names}' if names else ''} in {since(start)}: "
            f"{counted.total:.3g} floating-point operations"
        )
        if not self._compiled:  # the shares of modules are much the same for every shape
            for line in flops.table(counted, depth=_DEPTH):
                self._log.say(f"  {line}")
        self._compiled[shapes], self._flops[shapes] = compiled, counted


def _shapes(batch: Batch) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    return tuple((name, batch[name].shape, str(batch[name].dtype)) for name in sorted(batch))
