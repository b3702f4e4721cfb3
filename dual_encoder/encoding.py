"""Texts to vectors with a trained dual encoder, in batches of a few fixed shapes.

Letters: N texts, B batch, L length, D width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from corpora.tokens import TokenTable
from dual_encoder.task import SMALLEST_BATCH, Contrastive
from dual_encoder.towers import DualEncoder
from training import mesh as meshes
from training.checkpoints import read_best
from training.progress import Progress

_SHORTEST = 16


class Encoder:
    """Encodes token tables; it compiles once a side and length and takes the parameters at each call.

    Args:
      model: the dual encoder.
      batch_size: texts at a time; rounded up to a multiple of the devices.
      mesh: devices that share a batch; all of them by default.
    """

    def __init__(self, model: DualEncoder, *, batch_size: int = 256, mesh: Mesh | None = None):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self._mesh = meshes.data_mesh() if mesh is None else mesh
        self._batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self._query = _jitted(model, model.encode_query)
        self._document = _jitted(model, model.encode_document)

    def place(self, params: Any) -> Any:
        """Copies parameters to the devices once, rather than at every call."""
        return meshes.replicate(params, self._mesh)

    def queries(self, params: Any, table: TokenTable, max_length: int) -> np.ndarray:
        """Returns float32 [N, D], in the table's order."""
        return self._encode(self._query, params, table, max_length, title="")

    def documents(self, params: Any, table: TokenTable, max_length: int, *, title: str = "") -> np.ndarray:
        """Returns float32 [N, D], in the table's order; `title` names the work where progress is shown."""
        return self._encode(self._document, params, table, max_length, title=title)

    def _encode(self, encode: Callable, params: Any, table: TokenTable, max_length: int, *, title: str):
        lengths_N = np.minimum(np.diff(table.offsets), max_length)
        by_length = np.argsort(lengths_N, kind="stable")
        progress = Progress(len(table), unit="text", title=title) if title else None
        vectors_ND = None
        for start in range(0, len(table), self._batch_size):
            rows_B = by_length[start : start + self._batch_size]
            length = bucket(int(lengths_N[rows_B[-1]]), max_length)
            padded_B = np.pad(rows_B, (0, self._batch_size - len(rows_B)), constant_values=-1)
            batch = meshes.shard_batch(table.rectangle(padded_B, length), self._mesh)
            encoded_BD = np.asarray(encode(params, batch))
            if vectors_ND is None:
                vectors_ND = np.zeros((len(table), encoded_BD.shape[1]), np.float32)
            vectors_ND[rows_B] = encoded_BD[: len(rows_B)]
            if progress:
                progress.update(start + len(rows_B))
        if progress:
            progress.close()
        return np.zeros((0, 0), np.float32) if vectors_ND is None else vectors_ND


def best_params(run_dir: str | Path, task: Contrastive) -> tuple[int, Any]:
    """Returns (step, the model's parameters as NumPy arrays) of a run's best checkpoint.

    Raises:
      CheckpointError: there is none, or it does not fit the model.
    """
    params, state = jax.eval_shape(lambda: task.init(jax.random.key(0), SMALLEST_BATCH))
    params, state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), (params, state))
    step, params, _ = read_best(Path(run_dir) / "checkpoints", params, state)
    return step, jax.device_get(params["model"])


def bucket(length: int, max_length: int) -> int:
    """Returns the compiled length for rows of at most `length` tokens: a power of two, or `max_length`."""
    size = _SHORTEST
    while size < length:
        size *= 2
    return min(size, max_length)


def _jitted(model: DualEncoder, method: Callable) -> Callable:
    return jax.jit(lambda params, batch: model.apply({"params": params}, batch, method=method))
