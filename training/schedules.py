"""Learning-rate schedules, step -> rate: a linear warmup from zero to a peak, and then one of four courses.

The courses are optax's; `rsqrt`, which optax has not, is Vaswani et al.'s.
"""

import jax.numpy as jnp
import optax


def constant(*, peak: float, warmup_steps: int = 0) -> optax.Schedule:
    """The peak for good."""
    return _warmed_up(peak, warmup_steps, optax.constant_schedule(peak))


def linear(*, peak: float, total_steps: int, warmup_steps: int = 0, end: float = 0.0) -> optax.Schedule:
    """Down a straight line to `end` at `total_steps`."""
    left = _left(total_steps, warmup_steps)
    return _warmed_up(peak, warmup_steps, optax.linear_schedule(peak, end, left))


def cosine(*, peak: float, total_steps: int, warmup_steps: int = 0, end: float = 0.0) -> optax.Schedule:
    """Down half a cosine to `end` at `total_steps` (Loshchilov and Hutter, 2017, "SGDR: Stochastic Gradient
    Descent with Warm Restarts", without restarts)."""
    if peak == 0:
        raise ValueError("peak is 0; it must be positive")
    left = _left(total_steps, warmup_steps)
    return _warmed_up(peak, warmup_steps, optax.cosine_decay_schedule(peak, left, alpha=end / peak))


def rsqrt(*, peak: float, warmup_steps: int) -> optax.Schedule:
    """peak sqrt(warmup_steps / step) after the warmup (Vaswani et al., 2017, "Attention Is All You Need").

    The paper's factor D^-0.5 is for the caller to put into the peak: D^-0.5 warmup_steps^-0.5.
    """
    if warmup_steps < 1:
        raise ValueError(f"warmup_steps is {warmup_steps}; it must be at least 1")

    def after(count):  # steps since the warmup
        return peak * jnp.sqrt(warmup_steps / jnp.maximum(warmup_steps + count, 1))

    return _warmed_up(peak, warmup_steps, after)


def _warmed_up(peak: float, warmup_steps: int, after: optax.Schedule) -> optax.Schedule:
    if not peak > 0:
        raise ValueError(f"peak is {peak}; it must be positive")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps is {warmup_steps}; it must be at least 0")
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def _left(total_steps: int, warmup_steps: int) -> int:
    if total_steps <= warmup_steps:
        raise ValueError(f"total_steps is {total_steps}; it must be above warmup_steps, {warmup_steps}")
    return total_steps - warmup_steps
