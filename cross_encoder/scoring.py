"""Pairs of query and document to scores with a trained cross-encoder, in batches of a few fixed shapes.

Letters: Q queries, M documents of each, N pairs, B batch, L length.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from corpora import lengths
from cross_encoder.model import CrossEncoder
from cross_encoder.pairs import PairTable
from moe import leakage
from training import mesh as meshes
from training.activations import constrained
from training.progress import Progress

# Positions computed at a time, padding included; on a CPU so few that activations stay in the cache.
_POSITIONS_CPU, _POSITIONS = 4_096, 65_536


class PairScorer:
    """Scores pairs; it compiles once a length and takes the model's variables at each call.

    Where a mesh spans several processes, they make the same calls at the same time, and each gets all scores.

    Args:
      model: the cross-encoder.
      length: tokens of the longest row.
      batch_size: pairs at a time, at most; rounded up so that the mesh and the groups of sparse layers divide
        them. Fewer of long rows, by the kind of device.
      mesh: devices that share a batch; by default those of this process.
      activations: where named activations lie on the mesh, see training.mesh.Layout; a rule may match none.

    Attributes:
      computed: positions computed so far.
      tokens: those of them that held a token.
    """

    def __init__(
        self,
        model: CrossEncoder,
        *,
        length: int,
        batch_size: int = 256,
        mesh: Mesh | None = None,
        activations: Sequence[meshes.Rule] = (),
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self._mesh = meshes.data_mesh(jax.local_devices()) if mesh is None else mesh
        self._model, self._length, self._batch_size = model, length, batch_size
        parts = meshes.batch_parts(self._mesh)
        on_cpu = self._mesh.devices.flat[0].platform == "cpu"
        self._multiple = parts * leakage.group_rows(model)
        self._positions = _POSITIONS_CPU if on_cpu else _POSITIONS * parts
        self.computed = self.tokens = 0
        apply = constrained(
            lambda variables, batch: model.apply(variables, batch)[0], self._mesh, activations, all_used=False
        )
        # Whole on every device, so that every process has all rows.
        self._score = jax.jit(apply, out_shardings=NamedSharding(self._mesh, PartitionSpec()))

    def place(self, variables: Any) -> Any:
        """Copies variables to the devices once, rather than at every call; those that are there stay."""
        return meshes.replicate_missing(variables, self._mesh)

    def __call__(
        self,
        variables: Any,
        table: PairTable,
        query_rows_Q: np.ndarray,
        document_rows_QM: np.ndarray,
        *,
        title: str = "",
    ) -> np.ndarray:
        """Returns the score float32 [Q, M] of each query with its documents, NaN where the document is -1.

        Args:
          variables: of the model, as a Task's `variables` gives them.
          table: the texts.
          query_rows_Q: rows of queries in the table.
          document_rows_QM: rows of documents in it, -1 for none.
          title: names the work where progress is shown; "" shows none.
        """
        scores_QM = np.full(document_rows_QM.shape, np.nan, np.float32)
        query_N, place_N = np.nonzero(document_rows_QM >= 0)
        rows_N, document_N = query_rows_Q[query_N], document_rows_QM[query_N, place_N]
        lengths_N = table.lengths(rows_N, document_N)
        longest_first = np.argsort(-lengths_N, kind="stable")
        ladder = lengths.ladder(self._length)
        progress = Progress(len(query_N), unit="pair", title=title) if title else None
        done = 0
        while done < len(query_N):
            length = lengths.bucket(int(lengths_N[longest_first[done]]), ladder)
            size = min(self._batch_size, max(self._positions // length, 1))
            size = -(-size // self._multiple) * self._multiple
            pairs_B = longest_first[done : done + size]
            found_B = self._batch(variables, table, rows_N[pairs_B], document_N[pairs_B], size, length)
            scores_QM[query_N[pairs_B], place_N[pairs_B]] = found_B
            done += len(pairs_B)
            self.computed += size * length
            self.tokens += int(lengths_N[pairs_B].sum())
            if progress:
                progress.update(done)
        if progress:
            progress.close()
        return scores_QM

    def _batch(
        self,
        variables: Any,
        table: PairTable,
        rows_B: np.ndarray,
        document_B: np.ndarray,
        size: int,
        length: int,
    ) -> np.ndarray:
        padded = (0, size - len(rows_B))
        held = meshes.held_rows(size, self._mesh)
        rows_B1, document_B1 = np.pad(rows_B, padded), np.pad(document_B, padded, constant_values=-1)
        batch = table.rectangle(rows_B1[held], document_B1[held], length)
        with leakage.in_force(self._model, self._mesh):
            found_B = self._score(variables, meshes.shard_batch(batch, self._mesh, whole=False))
        return np.asarray(found_B)[: len(rows_B)]
