"""How likely a trained model finds chunks of text: perplexity is made of this.

Where a mesh spans several processes, they make the same calls at the same time, and each gets all values.

Letters: B rows of a batch, N chunks.
"""

import math
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from language_model import domains
from language_model.causal import Causal
from language_model.domains import Chunks
from moe import leakage
from training import mesh as meshes
from training.activations import constrained
from training.mesh import Layout
from training.progress import Progress


class Scorer:
    """Scores chunks in batches of one shape; it compiles once and takes the parameters at each call.

    Args:
      task: the model.
      mesh: devices that share a batch.
      layout: where activations lie on them; a rule may match none.
      batch_size: rows at a time, which the mesh divides.
      length: tokens of a chunk, at most.

    Raises:
      ValueError: the mesh does not divide the rows.
    """

    def __init__(self, task: Causal, mesh: Mesh, layout: Layout, *, batch_size: int, length: int):
        meshes.check_rows(batch_size, mesh)
        self._model, self._mesh, self._batch_size, self._length = task.model, mesh, batch_size, length
        score = constrained(task.score, mesh, layout.activations, all_used=False)
        # Whole on every device, so that every process has all rows.
        self._score = jax.jit(score, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(
        self, params: Any, state: Any, chunks: Chunks, *, title: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the log-likelihood of each chunk in nats, float64 [N], and its tokens, int64 [N].

        Args:
          params, state: the Task's, on the mesh.
          chunks: those to score.
          title: names the work where progress is shown; "" shows none.
        """
        count, size = len(chunks.table), self._batch_size
        found_N, tokens_N = np.zeros(count), np.zeros(count, np.int64)
        make = domains.batches(chunks, self._length)
        held = meshes.held_rows(size, self._mesh)
        progress = Progress(count, unit="chunk", title=title) if title else None
        for start in range(0, count, size):
            rows_B = np.arange(start, min(start + size, count))
            batch = make(np.pad(rows_B, (0, size - len(rows_B)), constant_values=-1), 0, held)
            with leakage.in_force(self._model, self._mesh):
                found_B, tokens_B = self._score(
                    params, state, meshes.shard_batch(batch, self._mesh, whole=False)
                )
            found_N[rows_B] = np.asarray(found_B)[: len(rows_B)]
            tokens_N[rows_B] = np.asarray(tokens_B)[: len(rows_B)]
            if progress:
                progress.update(start + len(rows_B))
        if progress:
            progress.close()
        return found_N, tokens_N


def perplexity(loss: float) -> float:
    """Returns e to the loss, in nats a token; the largest float where a diverged model's is beyond it (709
    nats), so that it can be written as JSON.

    >>> perplexity(0.0)
    1.0
    """
    try:
        return math.exp(loss)
    except OverflowError:
        return sys.float_info.max
