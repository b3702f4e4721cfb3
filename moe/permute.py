"""Copies of tokens laid out by expert, and their weighted sums: two gathers whose gradients are gathers.

    values[n] = x[token of the edge in row n]
    y[t] = sum over the edges r of t of weight[r] values[row of r]

Autodiff would turn either gather into a scatter. But the edges are in order of tokens, K for each, and each
has at most one row: what a gradient needs of row n, or of edge r, is found in one place too. Where edges come
in another order (experts have chosen), a token has any number of them, and the sums are scatters.

Dimensions: T tokens, R edges, N rows, K choices of a token, D width.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Layout:
    """Which edge has which row.

    Attributes:
      token: int32 [R], the token of each edge.
      edge: int32 [N], the edge of each row; any edge where there is none.
      filled: bool [N], whether a row has an edge.
      row: int32 [R], the row of each edge; any row where it has none.
      keep: bool [R], whether an edge has a row.
      choices: K where edge r is of token r // K, else 0.
    """

    token: jax.Array
    edge: jax.Array
    filled: jax.Array
    row: jax.Array
    keep: jax.Array
    choices: int = struct.field(pytree_node=False)


def spread(x_TD: jax.Array, layout: Layout) -> jax.Array:
    """Returns [N, D], the token of each row; without an edge it is any token, which gets no gradient."""
    if layout.choices:
        return _spread(x_TD, layout)
    values_ND = _take(x_TD, _take(layout.token, layout.edge))
    return jnp.where(layout.filled[:, None], values_ND, 0)


def collect(values_ND: jax.Array, weight_R: jax.Array, layout: Layout, num_tokens: int) -> jax.Array:
    """Returns [T, D] in the dtype of the values: of each token, its rows times the weights of their edges,
    added up in float32.

    Args:
      values_ND: float [N, D].
      weight_R: float32 [R].
      layout: of R edges and N rows.
      num_tokens: T.
    """
    if layout.choices:
        return _collect(values_ND, weight_R, layout)
    weighted_ND = _weight_of_rows(weight_R, layout)[:, None] * values_ND.astype(jnp.float32)
    y_TD = jnp.zeros((num_tokens, values_ND.shape[1]), jnp.float32)
    return y_TD.at[_take(layout.token, layout.edge)].add(weighted_ND).astype(values_ND.dtype)


@jax.custom_vjp
def _spread(x_TD, layout):
    return _take(x_TD, layout.edge // layout.choices)


def _spread_forward(x_TD, layout):
    return _spread(x_TD, layout), layout


def _spread_backward(layout, dvalues_ND):
    ones_R = jnp.ones_like(layout.keep, jnp.float32)
    return _sum_of_edges(dvalues_ND, ones_R, layout), None


_spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def _collect(values_ND, weight_R, layout):
    return _sum_of_edges(values_ND, weight_R, layout)


def _collect_forward(values_ND, weight_R, layout):
    return _collect(values_ND, weight_R, layout), (values_ND, weight_R, layout)


def _collect_backward(kept, dy_TD):
    values_ND, weight_R, layout = kept
    dy_of_row_ND = _take(dy_TD, layout.edge // layout.choices).astype(jnp.float32)
    dvalues_ND = _weight_of_rows(weight_R, layout)[:, None] * dy_of_row_ND
    dy_TD = dy_TD.astype(jnp.float32)
    dweight_TK = jnp.stack(
        [
            (dy_TD * _take(values_ND, row_T).astype(jnp.float32)).sum(1)
            for row_T in _by_choice(layout.row, layout)
        ],
        axis=1,
    )
    dweight_R = jnp.where(layout.keep, dweight_TK.reshape(-1), 0)
    return dvalues_ND.astype(values_ND.dtype), dweight_R, None


_collect.defvjp(_collect_forward, _collect_backward)


def _sum_of_edges(values_ND, weight_R, layout):
    weight_R = jnp.where(layout.keep, weight_R, 0)
    pairs = zip(_by_choice(layout.row, layout), _by_choice(weight_R, layout), strict=True)
    # One gather a choice, added up as they come: XLA on a CPU would write all of them out before a sum.
    y_TD = sum(weight_T[:, None] * _take(values_ND, row_T).astype(jnp.float32) for row_T, weight_T in pairs)
    return y_TD.astype(values_ND.dtype)


def before(sizes: jax.Array, axis: int) -> jax.Array:
    """Returns the sum of the sizes that come before each along an axis: where each begins, if they follow one
    another."""
    return jnp.cumsum(sizes, axis) - sizes


def _by_choice(of_edge_R: jax.Array, layout: Layout) -> list[jax.Array]:
    """A number of each edge as K arrays [T]."""
    of_edge_TK = of_edge_R.reshape(-1, layout.choices)
    return [of_edge_TK[:, k] for k in range(layout.choices)]


def _weight_of_rows(weight_R, layout):
    return jnp.where(layout.filled, _take(weight_R, layout.edge), 0)


def _take(x: jax.Array, indices: jax.Array) -> jax.Array:
    return jnp.asarray(x).at[indices].get(mode="promise_in_bounds")
