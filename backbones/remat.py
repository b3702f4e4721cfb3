"""What the backward pass keeps of each layer and what it computes again (Chen et al., 2016, "Training Deep
Nets with Sublinear Memory Cost"). Each function returns a policy for `TransformerEncoder.remat`.
"""

from collections.abc import Callable

import jax


def save_nothing() -> Callable[..., bool]:
    """Keep only each layer's input: least memory, one more forward pass."""
    return jax.checkpoint_policies.nothing_saveable


def save_projections() -> Callable[..., bool]:
    """Keep the products with weights, compute attention scores and elementwise operations again."""
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
