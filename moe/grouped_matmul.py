"""Rows of a matrix, sorted by expert, each times the matrix of its expert.

    y[r] = x[r] w[e]    for the sizes[e] rows of expert e, which follow those of expert e - 1

and its gradients

    dx[r] = dy[r] w[e]^T          dw[e] = sum over the rows of e of x[r]^T dy[r]

Experts may have any number of rows, and nothing is padded to a common size. The platform decides how:

* CPU: a loop over experts, and for each over blocks of its rows. XLA's `ragged_dot` is there one product of
  all rows with all experts, E times the work. Other than block sizes nothing is static, the result is written
  in place, and the gradient of a weight is written once a block, an expert at a time.
* TPU: `lax.ragged_dot`, which XLA compiles to a grouped kernel for y and dx. For dw it would compile a dense
  product with E times the operations (counted ahead of time for v5e and v5p), so that one is the kernel
  `tgmm` of megablox (Gale et al., 2023, "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts"), as
  it comes with jax. Over a mesh this kernel has to be inside `shard_map`.
* elsewhere: `lax.ragged_dot` for all three.

Dimensions: R rows, E experts, D, F widths.
"""

import functools

import chex
import jax
import jax.numpy as jnp
from jax import lax

# Rows of a block: an expert has blocks of the largest size, and a last one of the smallest that has room for
# what remains. They are closest where experts have few rows, and about the largest; each size is a product
# more to compile. Products of fewer rows XLA adds up in another order: a token's result would then depend, in
# its last bits, on how many others its expert has.
_BLOCKS = (64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 320, 384, 448, 480, 512, 544, 576, 640)
# Tiles of the TPU's kernel, at most: with the buffers of three of these sides it needs less than half of what
# a kernel may have of a v5e's fast memory.
_TILE = 512
_SMALLEST_TILE = 128

_PLAIN = (((1,), (0,)), ((), ()))  # contracts the columns of x with the rows of w
_TRANSPOSED = (((1,), (1,)), ((), ()))  # with its columns
_OUTER = (((0,), (0,)), ((), ()))  # rows with rows


@jax.custom_vjp
def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Multiplies rows by the matrices of their experts.

    Products are added up in float32 whatever the dtype of x; w is cast to that dtype, and its gradient is
    added up in float32 before it takes the dtype of w.

    Args:
      x_RD: float [R, D], rows sorted by expert.
      w_EDF: float [E, D, F].
      sizes_E: int32 [E], how many rows each expert has; at most R in all.

    Returns:
      [R, F] in the dtype of x, zero for rows that are no expert's.

    Raises:
      AssertionError: shapes that do not fit (chex).

    >>> x = jnp.array([[1.0], [2.0], [3.0]])
    >>> grouped_matmul(x, jnp.array([[[10.0]], [[100.0]]]), jnp.array([1, 1])).tolist()
    [[10.0], [200.0], [0.0]]
    """
    chex.assert_rank([x_RD, w_EDF, sizes_E], [2, 3, 1])
    chex.assert_shape(w_EDF, (len(sizes_E), x_RD.shape[1], None))
    return _product(x_RD, w_EDF, sizes_E, _PLAIN)


def _forward(x_RD, w_EDF, sizes_E):
    return grouped_matmul(x_RD, w_EDF, sizes_E), (x_RD, w_EDF, sizes_E)


def _backward(kept, dy_RF):
    x_RD, w_EDF, sizes_E = kept
    dx_RD = _product(dy_RF, w_EDF, sizes_E, _TRANSPOSED)
    return dx_RD, _outer(x_RD, dy_RF, sizes_E).astype(w_EDF.dtype), None


grouped_matmul.defvjp(_forward, _backward)


def _product(x: jax.Array, w: jax.Array, sizes: jax.Array, numbers) -> jax.Array:
    if not x.size:
        return jnp.zeros((len(x), _width(w, numbers)), x.dtype)
    return lax.platform_dependent(
        x,
        w,
        sizes.astype(jnp.int32),
        cpu=functools.partial(_product_by_blocks, numbers=numbers),
        default=functools.partial(_ragged_product, numbers=numbers),
    )


def _outer(x_RD: jax.Array, dy_RF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Returns dw, float32 [E, D, F]."""
    if not x_RD.size:
        return jnp.zeros((len(sizes_E), x_RD.shape[1], dy_RF.shape[1]), jnp.float32)
    return lax.platform_dependent(
        x_RD,
        dy_RF,
        sizes_E.astype(jnp.int32),
        cpu=_outer_by_blocks,
        tpu=_outer_by_tiles,
        default=_ragged_outer,
    )


def _ragged_product(x, w, sizes, *, numbers):
    (contracted, of_w), batched = numbers
    ragged = lax.RaggedDotDimensionNumbers(((contracted, (of_w[0] + 1,)), batched), (0,), (0,))
    y = lax.ragged_dot_general(x, w.astype(x.dtype), sizes, ragged, preferred_element_type=jnp.float32)
    return y.astype(x.dtype)


def _ragged_outer(x_RD, dy_RF, sizes_E):
    ragged = lax.RaggedDotDimensionNumbers(_OUTER, (0,), ())
    return lax.ragged_dot_general(x_RD, dy_RF, sizes_E, ragged, preferred_element_type=jnp.float32)


def _outer_by_tiles(x_RD, dy_RF, sizes_E):
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm  # takes a second to import

    rows = len(x_RD)
    # An expert's last tile is done whole: one that is not much larger than its rows wastes little.
    tile = min(_TILE, max(_SMALLEST_TILE, 1 << max(rows // len(sizes_E), 1).bit_length() - 1))
    missing = ((0, -rows % tile), (0, 0))
    x_RD, dy_RF = jnp.pad(x_RD, missing), jnp.pad(dy_RF, missing)
    return tgmm(x_RD.T, dy_RF, sizes_E, jnp.float32, (tile, _TILE, _TILE))


def _product_by_blocks(x, w, sizes, *, numbers):
    """`_product` by a loop. What is written in vain, rows of other experts and of none, is what was there."""
    rows, experts = len(x), len(w)
    blocks = _blocks(rows)
    ends_E = jnp.cumsum(sizes)

    def write(y, w_e, first, begin, end, size, whole):
        y_block = lax.dot_general(_rows(x, first, size), w_e, numbers, preferred_element_type=jnp.float32)
        y_block = y_block.astype(x.dtype)
        if not whole:
            y_block = jnp.where(_own(first, size, begin, end), y_block, _rows(y, first, size))
        return lax.dynamic_update_slice_in_dim(y, y_block, first, axis=0)

    def of_expert(e, y):
        w_e = lax.dynamic_index_in_dim(w, e, keepdims=False).astype(x.dtype)
        end = ends_E[e]

        def one(state):
            begin, y = state
            return begin + blocks[-1], write(y, w_e, begin, begin, end, blocks[-1], whole=True)

        state = lax.while_loop(lambda state: end - state[0] > blocks[-1], one, (end - sizes[e], y))
        for more_than, size in zip((0, *blocks), blocks, strict=False):

            def last(state, size=size):
                begin, y = state
                first = jnp.minimum(begin, rows - size)
                return end, write(y, w_e, first, begin, end, size, whole=False)

            # A loop that turns at most once: into and out of a conditional XLA would copy y.
            turns = lambda state, low=more_than, high=size: (end - state[0] > low) & (end - state[0] <= high)
            state = lax.while_loop(turns, last, state)
        return state[1]

    return lax.fori_loop(0, experts, of_expert, jnp.zeros((rows, _width(w, numbers)), x.dtype))


def _outer_by_blocks(x_RD, dy_RF, sizes_E):
    rows, experts = len(x_RD), len(sizes_E)
    blocks = _blocks(rows)
    ends_E = jnp.cumsum(sizes_E)

    def product(x_block, dy_block):
        return lax.dot_general(x_block, dy_block, _OUTER, preferred_element_type=jnp.float32)

    def of_expert(e, dw_EDF):
        end = ends_E[e]
        begin = end - sizes_E[e]
        # The last block comes first: it has to be written, the others are added.
        whole = jnp.maximum(sizes_E[e] - 1, 0) // blocks[-1] * blocks[-1]
        state = (begin + whole, dw_EDF)
        for more_than, size in zip((0, *blocks), blocks, strict=False):

            def last(state, size=size):
                at, dw_EDF = state
                first = jnp.minimum(at, rows - size)
                own = _own(first, size, at, end)
                masked = (jnp.where(own, _rows(array, first, size), 0) for array in (x_RD, dy_RF))
                return end, lax.dynamic_update_index_in_dim(dw_EDF, product(*masked), e, 0)

            turns = lambda state, low=more_than, high=size: (end - state[0] > low) & (end - state[0] <= high)
            state = lax.while_loop(turns, last, state)

        def one(state):
            at, dw_EDF = state
            dw_DF = product(_rows(x_RD, at, blocks[-1]), _rows(dy_RF, at, blocks[-1]))
            dw_DF = dw_DF + lax.dynamic_index_in_dim(dw_EDF, e, keepdims=False)
            return at + blocks[-1], lax.dynamic_update_index_in_dim(dw_EDF, dw_DF, e, 0)

        return lax.while_loop(lambda state: state[0] < begin + whole, one, (begin, state[1]))[1]

    zeros = jnp.zeros((experts, x_RD.shape[1], dy_RF.shape[1]), jnp.float32)
    return lax.fori_loop(0, experts, of_expert, zeros)


def _blocks(rows: int) -> tuple[int, ...]:
    """The sizes of blocks, of which none is larger than all rows."""
    return tuple(sorted({min(size, rows) for size in _BLOCKS}))


def _width(w: jax.Array, numbers) -> int:
    """Of a row's product: the axis of an expert's matrix that is not contracted."""
    return w.shape[2 - numbers[0][1][0]]


def _rows(x: jax.Array, first: jax.Array, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, first, size, axis=0)


def _own(first: jax.Array, size: int, begin: jax.Array, end: jax.Array) -> jax.Array:
    """bool [size, 1], which rows of the block at `first` are of begin to end."""
    row = first + jnp.arange(size, dtype=jnp.int32)[:, None]
    return (row >= begin) & (row < end)
