"""All docids as a trie of arrays on the device, which says how an id that was begun may go on.

Documents are sorted by their ids. A node is a run of sorted documents, those whose ids begin alike: the
root is all, a leaf is one. Nodes are numbered depth by depth and, within a depth, in the order of their
runs, so that a node's children stand next to one another, as do the documents below it:

    symbols  [nodes]      the symbol that leads to a node
    children [nodes + 1]  a node's first child; the next entry is where its children end
    begins   [nodes]      the first sorted document of a node
    ends     [nodes]      behind its last one
    order    [N]          the row of each sorted document

For the first depths there is also a table of children by symbol. So a node takes 13 bytes with up to 256
symbols, and ids that part early have few nodes.

Which documents may be found at all is apart from the trie, as `Live`: a bit for each document, with counts,
so that whether anything is left below a node is the difference of two ranks. A removed document, or a subset
of the collection for each query, needs no other trie.

Letters: N documents, T symbols of the longest id, V symbols, B queries, K nodes of each, F children, S
subsets, W words of 32 documents, n continuations.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from generative_retrieval.docids import NONE, sorted_rows

_TABLE = 4_194_304  # entries of the table of the first depths, 16 MiB
ROOT = 0


@struct.dataclass
class Live:
    """Subsets of the documents, of which every query has one.

    Attributes:
      words_SW: uint32, bit i of word w stands for sorted document 32 w + i.
      before_SW: int32, documents of the subset before each word.
      of_query_B: int32, the subset of each query.
    """

    words_SW: jax.Array
    before_SW: jax.Array
    of_query_B: jax.Array

    def rank(self, places: jax.Array) -> jax.Array:
        """Documents of the query's subset before each sorted place: int32 [B, ...] of int32 [B, ...]."""
        subsets = self.of_query_B.reshape(-1, *[1] * (places.ndim - 1))
        word, bit = places >> 5, (places & 31).astype(jnp.uint32)
        below = self.words_SW[subsets, word] & ((jnp.uint32(1) << bit) - 1)
        return self.before_SW[subsets, word] + jax.lax.population_count(below).astype(jnp.int32)


@struct.dataclass
class Trie:
    """See the module's docstring; made by `build`.

    Attributes:
      symbols: the smallest unsigned integer that holds them, [nodes].
      children: int32 [nodes + 1].
      begins: int32 [nodes].
      ends: int32 [nodes].
      order_N: int32.
      table: int32 [nodes of the first depths, V], the child that a symbol leads to; -1 for none.
      size: V.
      length: T.
      depths: of the nodes that the table has.
      fan_out: F, the most children of a node that the table has not.
      widest: the most children of any node.
    """

    symbols: jax.Array
    children: jax.Array
    begins: jax.Array
    ends: jax.Array
    order_N: jax.Array
    table: jax.Array
    size: int = struct.field(pytree_node=False)
    length: int = struct.field(pytree_node=False)
    depths: int = struct.field(pytree_node=False)
    fan_out: int = struct.field(pytree_node=False)
    widest: int = struct.field(pytree_node=False)

    @property
    def num_documents(self) -> int:
        return self.order_N.shape[0]

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def document(self, nodes: jax.Array) -> jax.Array:
        """The row of the document whose id ends at each node, -1 where none does: int32, of int32 nodes of
        any shape; -1 is no node."""
        there = (nodes > ROOT) & (self.children[nodes] == self.children[nodes + 1])
        return jnp.where(there, self.order_N[self.begins[nodes]], NONE)

    def child(self, nodes: jax.Array, symbols: jax.Array) -> jax.Array:
        """The node that a symbol leads to from each node, -1 where none: int32, of arrays of one shape.

        A search by halves among the children, whose symbols ascend.
        """
        chex.assert_equal_shape([nodes, symbols])
        low = self.children[nodes]
        high = end = jnp.where(nodes >= 0, self.children[nodes + 1], low)
        for _ in range(max(self.size, 1).bit_length()):
            middle = (low + high) // 2
            less = (low < high) & (self.symbol(middle) < symbols)
            low, high = jnp.where(less, middle + 1, low), jnp.where(less | (low >= high), high, middle)
        return jnp.where((low < end) & (self.symbol(low) == symbols), low, NONE)

    def mask(self, nodes_BK: jax.Array, live: Live | None = None) -> jax.Array:
        """Which symbols lead from each node to a document that may be found: bool [B, K, V]."""
        children_BKF = self._listed(nodes_BK, self.widest)
        there_BKF = self.alive(children_BKF, live)
        rows_BK = jnp.indices(nodes_BK.shape)[:, :, :, None]
        at = jnp.where(there_BKF, self.symbol(children_BKF), self.size)
        found_BKV = jnp.zeros((*nodes_BK.shape, self.size), bool)
        return found_BKV.at[rows_BK[0], rows_BK[1], at].set(True, mode="drop")

    def alive(self, nodes: jax.Array, live: Live | None = None) -> jax.Array:
        """Whether each is a node with a document that may be found below it: bool, of int32 [B, ...]."""
        there = nodes >= 0
        if live is None:
            return there
        return there & (live.rank(self.ends[nodes]) > live.rank(self.begins[nodes]))

    def best(
        self,
        nodes_BK: jax.Array,
        depth: jax.Array,
        scores_BKV: jax.Array,
        count: int,
        live: Live | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The best ways to go on from nodes of one depth.

        Args:
          nodes_BK: int32; -1 for none.
          depth: int32 [], theirs.
          scores_BKV: float32, of each way to go on.
          count: n.
          live: which documents may be found; None for all.

        Returns:
          scores float32 [B, n], descending, and where they are -inf nothing is; children int32 [B, n], -1
          there; and k int32 [B, n], which of the nodes they are children of. A tie goes to the lower k, then
          to the lower symbol.
        """
        compressed = functools.partial(self._best_listed, nodes_BK, scores_BKV, count, live)
        tabled = functools.partial(self._best_tabled, nodes_BK, scores_BKV, count, live)
        if self.depths == self.length:
            return tabled()
        return jax.lax.cond(depth < self.depths, tabled, compressed)

    def _best_tabled(self, nodes_BK, scores_BKV, count, live):
        rows_BK = jnp.where(nodes_BK >= 0, nodes_BK, self.table.shape[0])
        children_BKV = self.table.at[rows_BK].get(mode="fill", fill_value=NONE)
        return self._top(scores_BKV, children_BKV, count, live)

    def _best_listed(self, nodes_BK, scores_BKV, count, live):
        children_BKF = self._listed(nodes_BK, self.fan_out)
        scores_BKF = jnp.take_along_axis(scores_BKV, self.symbol(children_BKF), axis=2)
        return self._top(scores_BKF, children_BKF, count, live)

    def _top(self, scores_BKF, children_BKF, count, live):
        batch, _, fan_out = scores_BKF.shape
        scores_BKF = jnp.where(self.alive(children_BKF, live), scores_BKF, -jnp.inf)
        flat_BC, children_BC = scores_BKF.reshape(batch, -1), children_BKF.reshape(batch, -1)
        if (missing := count - flat_BC.shape[1]) > 0:
            flat_BC = jnp.pad(flat_BC, ((0, 0), (0, missing)), constant_values=-jnp.inf)
            children_BC = jnp.pad(children_BC, ((0, 0), (0, missing)), constant_values=NONE)
        best_Bn, at_Bn = jax.lax.top_k(flat_BC, count)
        found_Bn = jnp.take_along_axis(children_BC, at_Bn, axis=1)
        return best_Bn, jnp.where(jnp.isfinite(best_Bn), found_Bn, NONE), at_Bn // fan_out

    def _listed(self, nodes_BK: jax.Array, fan_out: int) -> jax.Array:
        """The children of each node, -1 behind them: int32 [B, K, F]."""
        first_BK1, end_BK1 = self.children[nodes_BK][:, :, None], self.children[nodes_BK + 1][:, :, None]
        listed_BKF = first_BK1 + jnp.arange(fan_out, dtype=jnp.int32)[None, None, :]
        return jnp.where((nodes_BK[:, :, None] >= 0) & (listed_BKF < end_BK1), listed_BKF, NONE)

    def symbol(self, nodes: jax.Array) -> jax.Array:
        """The symbol that leads to each node, int32; something for -1."""
        return self.symbols[nodes].astype(jnp.int32)

    def live(self, documents_SN: np.ndarray, of_query_B: np.ndarray | None = None) -> Live:
        """Which documents may be found.

        Args:
          documents_SN: bool, of each subset and row of the documents; [N] for one subset.
          of_query_B: int, the subset of each query; None for the first, whatever the query.

        Raises:
          ValueError: a shape does not fit, or a query has a subset that is not there.
        """
        documents_SN = np.atleast_2d(documents_SN)
        subsets = len(documents_SN)
        if documents_SN.dtype != bool or documents_SN.shape != (subsets, self.num_documents):
            raise ValueError(
                f"documents are {documents_SN.dtype} {list(documents_SN.shape)}; allowed: bool [S, "
                f"{self.num_documents}]"
            )
        of_query_B = np.zeros(1, np.int32) if of_query_B is None else np.asarray(of_query_B)
        wrong = of_query_B[(of_query_B < 0) | (of_query_B >= subsets)]
        if wrong.size:
            raise ValueError(f"of_query has {wrong[0]}; allowed: 0 to {subsets - 1}")
        words = self.num_documents // 32 + 1  # one more than full ones, for the rank of the end
        bits = np.zeros((subsets, words * 32), bool)
        bits[:, : self.num_documents] = documents_SN[:, np.asarray(self.order_N)]
        packed = np.packbits(bits, axis=1, bitorder="little").view("<u4")
        counts = bits.reshape(subsets, words, 32).sum(axis=2, dtype=np.int32)
        before = np.cumsum(counts, axis=1, dtype=np.int32) - counts
        return Live(jnp.asarray(packed), jnp.asarray(before), jnp.asarray(of_query_B, jnp.int32))


def build(symbols_NT: np.ndarray, size: int) -> Trie:
    """Makes the trie of docids.

    Args:
      symbols_NT: int32, see `docids.Docids`, which has checked them.
      size: V.
    """
    order_N = sorted_rows(symbols_NT)
    count, length = symbols_NT.shape
    dtype = np.min_scalar_type(size)
    new_N = np.zeros(count, bool)  # whether a sorted document begins another node of the depth
    new_N[0] = True
    symbols, begins, ends = [np.zeros(1, dtype)], [np.zeros(1, np.int64)], [np.full(1, count)]
    children, fan_outs, total = [], [], 1
    for depth in range(length):
        column_N = symbols_NT[order_N, depth]
        new_N[1:] |= column_N[1:] != column_N[:-1]
        bounds = np.append(np.flatnonzero(new_N), count)
        goes_on = column_N[bounds[:-1]] != NONE  # or else an id has ended before this depth
        found = bounds[:-1][goes_on]
        before = np.searchsorted(found, begins[-1])  # each node's first child, among those of this depth
        children.append(total + before)
        fan_outs.append(int(np.diff(np.append(before, len(found))).max(initial=0)))
        symbols.append(column_N[found].astype(dtype))
        begins.append(found)
        ends.append(bounds[1:][goes_on])
        total += len(found)
    children.append(np.full(len(begins[-1]) + 1, total))
    table, depths = _table(symbols, children, size)
    return Trie(
        symbols=jnp.asarray(np.concatenate(symbols)),
        children=jnp.asarray(np.concatenate(children).astype(np.int32)),
        begins=jnp.asarray(np.concatenate(begins).astype(np.int32)),
        ends=jnp.asarray(np.concatenate(ends).astype(np.int32)),
        order_N=jnp.asarray(order_N.astype(np.int32)),
        table=jnp.asarray(table),
        size=size,
        length=length,
        depths=depths,
        fan_out=max(fan_outs[depths:], default=0),
        widest=max(fan_outs),
    )


def _table(symbols: list[np.ndarray], children: list[np.ndarray], size: int) -> tuple[np.ndarray, int]:
    """Children by symbol, of the root and of as many depths more as the table has room for; and how many."""
    nodes = np.cumsum([len(of_depth) for of_depth in symbols[:-1]])
    depths = max(1, int(np.searchsorted(nodes * size, _TABLE, side="right")))
    first = np.concatenate([*children[:depths], children[depths][:1]])
    table = np.full((int(nodes[depths - 1]), size), NONE, np.int32)
    rows = np.repeat(np.arange(len(table)), np.diff(first))
    table[rows, np.concatenate(symbols[1 : depths + 1])] = np.arange(1, 1 + len(rows))
    return table, depths
