"""A block of several layers, of which one is sparse: a mixture of experts in every n-th layer.

Lepikhin et al. (2021), "GShard", and Fedus et al. (2022), "Switch Transformers", make every other layer
sparse. An encoder that scans over blocks scans over periods, so its `num_layers` counts periods:

    block=dict(
        name="backbones.periods.Period",
        every=2,
        dense=dict(name="backbones.blocks.PreNorm", ...),
        sparse=dict(name="backbones.blocks.PreNorm", feed_forward=dict(name="moe.mixture.Mixture", ...), ...),
    )

A period has the parameters `dense_0`, ..., `dense_<n - 2>` and `sparse`, which is its last layer, and the
sums of that one.

Dimensions: B batch, L length, D model width, H heads, S length of the encoder's output; n layers of a period.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from backbones.cache import KeysValues
from backbones.decoder_blocks import DecoderBlock, Memory
from moe.feed_forward import Aux, Carry, Context, check_no_sums


class _Layers(nn.Module):
    """The layers of a period, for `Period` and `DecoderPeriod`.

    The blocks given are templates.

    Attributes:
      dense: a block whose feed-forward layer gives no sums.
      sparse: a block.
      every: n.
    """

    dense: nn.Module
    sparse: nn.Module
    every: int

    def setup(self):
        check_every(self.every)
        for number in range(self.every - 1):
            setattr(self, f"dense_{number}", self.dense.clone(name=None, _deep_clone=True))

    @nn.nowrap
    def initial_carry(self, x_BLD: jax.Array, context: Context) -> Carry:
        """What enters the first period: a carry for dense layers, and one for sparse ones."""
        return self.dense.initial_carry(x_BLD, context), self.sparse.initial_carry(x_BLD, context)

    def dense_layers(self) -> list[nn.Module]:
        return [getattr(self, f"dense_{number}") for number in range(self.every - 1)]


class Period(_Layers):
    """n - 1 dense blocks of an encoder and a sparse one, from `backbones.blocks`. Fields as in `_Layers`."""

    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        carry: Carry,
        *,
        visible: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry, Aux]:
        """Returns x of the same shape and dtype, the carry for the next period, and the sums.

        Raises:
          ValueError: a dense block gives sums.
        """
        dense, sparse = carry
        for layer in self.dense_layers():
            x_BLD, dense, aux = layer(x_BLD, context, dense, visible=visible, bias=bias)
            check_no_sums(aux, "dense")
        x_BLD, sparse, aux = self.sparse(x_BLD, context, sparse, visible=visible, bias=bias)
        return x_BLD, (dense, sparse), aux


class DecoderPeriod(_Layers):
    """n - 1 dense blocks of a decoder and a sparse one, from `backbones.decoder_blocks`. Fields as in
    `_Layers`; keys and values have the n layers on axis 0."""

    def setup(self):
        super().setup()
        for field in ("dense", "sparse"):
            block = getattr(self, field)
            if not isinstance(block, DecoderBlock):
                raise ValueError(
                    f"{field} is {type(block).__name__}; allowed: one of backbones.decoder_blocks"
                )
        if (self.dense.cross_attention is None) != (self.sparse.cross_attention is None):
            raise ValueError("cross_attention is in one of dense and sparse; allowed: in both, or in neither")
        if self.dense.attention.heads != self.sparse.attention.heads:
            raise ValueError(
                f"heads are {self.dense.attention.heads} in dense and {self.sparse.attention.heads} in "
                "sparse; allowed: as many in both, which share a cache"
            )

    @property
    def attention(self) -> nn.Module:
        return self.sparse.attention

    @property
    def cross_attention(self) -> nn.Module | None:
        return getattr(self.sparse, "cross_attention", None)  # `setup` says what is wrong with another block

    def read(self, last_BSD: jax.Array) -> KeysValues:
        """Keys and values of an encoder's output for each layer, [n, B, H, S, d]."""
        return _stacked([layer.read(last_BSD) for layer in (*self.dense_layers(), self.sparse)])

    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        carry: Carry,
        memory: Memory,
        *,
        visible: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry, Aux, KeysValues]:
        """Returns x of the same shape and dtype, the carry for the next period, the sums, and `own`.

        Raises:
          ValueError: a dense block gives sums.
        """
        dense, sparse = carry
        kept = []
        for number, layer in enumerate(self.dense_layers()):
            seen = _of_layer(memory, number)
            x_BLD, dense, aux, own = layer(x_BLD, context, dense, seen, visible=visible, bias=bias)
            check_no_sums(aux, "dense")
            kept.append(own)
        seen = _of_layer(memory, self.every - 1)
        x_BLD, sparse, aux, own = self.sparse(x_BLD, context, sparse, seen, visible=visible, bias=bias)
        return x_BLD, (dense, sparse), aux, _stacked([*kept, own])


def check_every(every: int) -> None:
    """Raises ValueError unless the layers of a period are a positive number."""
    if every < 1:
        raise ValueError(f"every is {every}; allowed: an integer of at least 1")


def _of_layer(memory: Memory, number: int) -> Memory:
    layer = lambda tree: jax.tree.map(lambda x: x[number], tree)
    return memory.replace(own=layer(memory.own), source=layer(memory.source))


def _stacked(layers: list[KeysValues]) -> KeysValues:
    return jax.tree.map(lambda *x: jnp.stack(x), *layers)
