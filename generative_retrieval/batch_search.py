"""Queries to documents with a trained model that spells docids, in batches of a few fixed shapes.

Where a mesh spans several processes, they have the same queries and make the same calls at the same time, and
each gets all results.

Letters: Q queries, B of a batch, L length, N documents, S subsets of them, n results.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from corpora import lengths
from corpora.tokens import TokenTable
from generative_retrieval import beam, speller, trie
from generative_retrieval.docids import Docids
from moe import leakage
from training import mesh as meshes
from training.activations import constrained
from training.mesh import Layout
from training.progress import Progress

FLAG = "allow_batch_dependence (--allow_batch_dependence)"


class BatchSearch:
    """Searches by beam; it compiles once a length of queries and takes the model's variables at each call.

    Args:
      model: such as `models.EncoderDecoder`.
      docids: of the documents.
      mesh: devices that share a batch.
      layout: where activations lie on them; a rule may match none.
      batch_size: queries at a time; rounded up so that the mesh and the groups of sparse layers divide them.
      length: tokens that queries are cut to.
      beams, results, length_penalty: see `beam.search`.
      search: how: `beam.search`, or another function of the same arguments, such as `diverse.search` with its
        own ones given.
      allow_batch_dependence: whether what a query finds may depend on those that it is searched with, see
        `moe.leakage`.

    Raises:
      ValueError: batch_size, beams or results is below 1, or the penalty negative.
      DependenceError: results depend on the batch, and it is not allowed.
    """

    def __init__(
        self,
        model: nn.Module,
        docids: Docids,
        mesh: Mesh,
        layout: Layout,
        *,
        batch_size: int,
        length: int,
        beams: int,
        results: int,
        length_penalty: float = 0.0,
        search: Callable[..., beam.Found] = beam.search,
        allow_batch_dependence: bool = False,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        beam.check(beams=beams, results=results, length_penalty=length_penalty)
        if not allow_batch_dependence:
            leakage.refuse_batch(model, "search", FLAG)
        multiple = meshes.batch_parts(mesh) * leakage.group_rows(model)
        self._batch_size = -(-batch_size // multiple) * multiple
        self._mesh, self._length, self._results = mesh, length, results
        self._model = model
        built = trie.build(docids.symbols_NT, docids.size)
        self._trie = meshes.replicate(built, mesh)

        def found(variables: Any, of: trie.Trie, live: trie.Live | None, batch: Any) -> beam.Found:
            spelling = speller.of(model, variables, batch, allow_batch_dependence=allow_batch_dependence)
            return search(
                spelling, of, beams=beams, results=results, live=live, length_penalty=length_penalty
            )

        # Whole on every device, so that every process has all rows.
        self._search = jax.jit(
            constrained(found, mesh, layout.activations, all_used=False),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )

    def __call__(
        self,
        variables: Any,
        table: TokenTable,
        *,
        live_SN: np.ndarray | None = None,
        subset_Q: np.ndarray | None = None,
        title: str = "",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores float32 [Q, n], best first and -inf for none, and rows int32 [Q, n], -1 for none.

        A tie goes to the lower row. A query without a token finds nothing.

        Args:
          variables: the model's, on the mesh.
          table: the queries.
          live_SN: bool [S, N], or [N], subsets of the documents that may be found; None for all of them.
          subset_Q: int, the subset of each query; None for the first, whatever the query.
          title: names the work where progress is shown; "" shows none.

        Raises:
          ValueError: a shape does not fit, or a query has a subset that is not there.
        """
        queries = len(table)
        live = self._live(queries, live_SN, subset_Q)
        lengths_Q = np.minimum(np.diff(table.offsets), self._length)
        longest_first = np.argsort(-lengths_Q, kind="stable")
        ladder = lengths.ladder(self._length)
        scores_Qn = np.full((queries, self._results), -np.inf, np.float32)
        rows_Qn = np.full((queries, self._results), -1, np.int32)
        progress = Progress(queries, unit="text", title=title) if title else None
        held = meshes.held_rows(self._batch_size, self._mesh)
        for done in range(0, queries, self._batch_size):
            rows_B = longest_first[done : done + self._batch_size]
            padded_B = np.pad(rows_B, (0, self._batch_size - len(rows_B)), constant_values=-1)
            length = lengths.bucket(int(lengths_Q[rows_B[0]]), ladder)
            batch = meshes.shard_batch(table.rectangle(padded_B[held], length), self._mesh, whole=False)
            allowed = live
            if live is not None:
                of_query_B = np.where(padded_B < 0, 0, live.of_query_B[padded_B])
                allowed = live.replace(of_query_B=meshes.replicate(of_query_B, self._mesh))
            with leakage.in_force(self._model, self._mesh):
                found = self._search(variables, self._trie, allowed, batch)
            scores_Qn[rows_B] = np.asarray(found.scores_Bn)[: len(rows_B)]
            rows_Qn[rows_B] = np.asarray(found.documents_Bn)[: len(rows_B)]
            if progress:
                progress.update(done + len(rows_B))
        if progress:
            progress.close()
        scores_Qn[lengths_Q == 0], rows_Qn[lengths_Q == 0] = -np.inf, -1
        return scores_Qn, rows_Qn

    def _live(
        self, queries: int, live_SN: np.ndarray | None, subset_Q: np.ndarray | None
    ) -> trie.Live | None:
        """The subsets, whole on every device, with the subset of each query on the host."""
        if live_SN is None:
            if subset_Q is not None:
                raise ValueError("subset_Q is given without live_SN; the subsets are needed too")
            return None
        subset_Q = np.zeros(queries, np.int32) if subset_Q is None else np.asarray(subset_Q, np.int32)
        if subset_Q.shape != (queries,):
            raise ValueError(f"subset_Q has shape {subset_Q.shape}; allowed: ({queries},)")
        live = self._trie.live(live_SN, subset_Q)
        words, before = meshes.replicate((live.words_SW, live.before_SW), self._mesh)
        return live.replace(words_SW=words, before_SW=before, of_query_B=subset_Q)
