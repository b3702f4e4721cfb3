"""Experts: the networks that rows of tokens are brought to.

Each is a template for all experts of a layer, with its weights stacked, `rows -> rows`; it works on any
layout of rows (see `moe.dispatch`). Parameters are float32 and are cast to the dtype of the rows.

Dimensions: E experts, D model width, F width of an expert.
"""

from collections.abc import Callable

import jax
from flax import linen as nn

from moe.dispatch import Rows
from moe.feed_forward import check_width
from training.activations import named


class Dense(nn.Module):
    """A two-layer perceptron an expert: activation(x W_in) W_out, as `moe.feed_forward.Dense`.

    Attributes:
      width: F.
      activation: elementwise function.
      use_bias: whether the two products have a bias.
      dropout: rate of dropout on the hidden layer.
      init_scale: of each expert's kernels, the variance times their fan-in; Fedus et al. (2022), "Switch
        Transformers", take 0.1 for large models.
    """

    width: int
    activation: Callable[[jax.Array], jax.Array] = nn.gelu
    use_bias: bool = False
    dropout: float = 0.0
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, rows: Rows, *, train: bool = False) -> Rows:
        """Returns rows of the same layout and width."""
        check_width(self.width)
        width = rows.values.shape[-1]
        hidden = _project(self, rows, "in", self.width).map(_named).map(jax.checkpoint(self.activation))
        hidden = hidden.map(lambda x: nn.Dropout(self.dropout)(x, deterministic=not train))
        return _project(self, hidden, "out", width)


class Gated(nn.Module):
    """A gated perceptron an expert: (activation(x W_gate) * (x W_in)) W_out, as `moe.feed_forward.Gated`.

    Attributes:
      width: F.
      activation: elementwise function of the gate; SiLU makes SwiGLU.
      use_bias: whether the three products have a bias.
      dropout: rate of dropout on the hidden layer.
      init_scale: see `Dense`.
    """

    width: int
    activation: Callable[[jax.Array], jax.Array] = nn.silu
    use_bias: bool = False
    dropout: float = 0.0
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, rows: Rows, *, train: bool = False) -> Rows:
        """Returns rows of the same layout and width."""
        check_width(self.width)
        width = rows.values.shape[-1]
        gate = _project(self, rows, "gate", self.width).map(_named)
        hidden = _project(self, rows, "in", self.width).map(_named)
        gated = jax.checkpoint(lambda gate, x: self.activation(gate) * x)
        hidden = gate.map(gated, hidden)
        hidden = hidden.map(lambda x: nn.Dropout(self.dropout)(x, deterministic=not train))
        return _project(self, hidden, "out", width)


def _named(x: jax.Array) -> jax.Array:
    return named(x, "experts")


def _project(module: nn.Module, rows: Rows, name: str, features: int) -> Rows:
    """Rows times each expert's kernel; every expert's starts as it would alone, not as a slice of one
    large matrix."""
    init = nn.initializers.variance_scaling(
        module.init_scale, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=(0,)
    )
    shape = (rows.num_experts, rows.values.shape[-1], features)
    rows = rows.matmul(module.param(name, init, shape))
    if module.use_bias:
        zeros = nn.initializers.zeros_init()
        rows = rows.add(module.param(f"{name}_bias", zeros, (rows.num_experts, features)))
    return rows
