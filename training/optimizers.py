"""Optimizers are optax's; here is only what a config needs to put several together."""

import optax


def clipped(optimizer: optax.GradientTransformation, *, max_norm: float) -> optax.GradientTransformation:
    """Clips the gradient to a global norm of `max_norm` before `optimizer` sees it.

    Raises:
      ValueError: `max_norm` is not positive, or `optimizer` is incomplete.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}; it must be positive")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer is {optimizer!r}, not an optax transformation; is an argument missing?")
    return optax.chain(optax.clip_by_global_norm(max_norm), optimizer)
