"""Texts to vectors with a trained dual encoder, in batches of a few fixed shapes.

Where a mesh spans several processes, they have the same texts and make the same calls at the same time, and
each gets all vectors.

Letters: N texts, B batch, L length, D width.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from corpora import lengths
from corpora.tokens import TokenTable
from dual_encoder.task import Contrastive, smallest_batch
from dual_encoder.towers import DualEncoder
from moe import leakage
from training import mesh as meshes
from training import trained
from training.activations import constrained
from training.progress import Progress

# Positions computed at a time by a stack of layers, padding included: on a CPU so few that its
# activations stay in the cache, elsewhere enough to keep a device busy.
_POSITIONS_CPU, _POSITIONS = 1_024, 32_768


class Encoder:
    """Encodes token tables; it compiles once a side and length and takes the model's variables at each call:
    `{"params": ...}`, and what else a Task's `variables` gives.

    Args:
      model: the dual encoder.
      batch_size: texts at a time, at most; rounded up so that the mesh and the groups of sparse layers divide
        them. A Transformer takes fewer of long texts, by the kind of device.
      mesh: devices that share a batch; by default those of this process.
      activations: where named activations lie on the mesh, see training.mesh.Layout; a rule may match none.

    Attributes:
      computed: positions computed so far.
      tokens: those of them that held a token.
    """

    def __init__(
        self,
        model: DualEncoder,
        *,
        batch_size: int = 256,
        mesh: Mesh | None = None,
        activations: Sequence[meshes.Rule] = (),
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self._mesh = meshes.data_mesh(jax.local_devices()) if mesh is None else mesh
        self._batch_size = batch_size
        self.computed = self.tokens = 0
        on_cpu = self._mesh.devices.flat[0].platform == "cpu"
        parts = meshes.batch_parts(self._mesh)
        self._multiple = parts * leakage.group_rows(model)
        self._model = model
        self._positions = _POSITIONS_CPU if on_cpu else _POSITIONS * parts
        self._query = _Side(model, model.query, model.encode_query, self._mesh, activations)
        self._document = _Side(model, model.document, model.encode_document, self._mesh, activations)

    def place(self, variables: Any) -> Any:
        """Copies variables to the devices once, rather than at every call.

        Those that are on the mesh already stay as they are, whole on each device or in parts.
        """

        def placed(leaf: Any) -> jax.Array:
            on_mesh = isinstance(leaf, jax.Array) and getattr(leaf.sharding, "mesh", None) == self._mesh
            return leaf if on_mesh else meshes.replicate(leaf, self._mesh)

        return jax.tree.map(placed, variables)

    def queries(
        self,
        variables: Any,
        table: TokenTable,
        max_length: int,
        *,
        report: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Returns float32 [N, D], in the table's order; `report` as in `documents`."""
        return self._encode(self._query, variables, table, max_length, title="", report=report)

    def documents(
        self,
        variables: Any,
        table: TokenTable,
        max_length: int,
        *,
        title: str = "",
        report: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Returns float32 [N, D], in the table's order.

        `title` names the work where progress is shown; `report` is told after each batch how many are done,
        in the share of the work, as texts of one length would be.
        """
        return self._encode(self._document, variables, table, max_length, title=title, report=report)

    def _encode(
        self,
        side: "_Side",
        variables: Any,
        table: TokenTable,
        max_length: int,
        *,
        title: str,
        report: Callable[[int], None] | None = None,
    ):
        lengths_N = np.minimum(np.diff(table.offsets), max_length)
        longest_first = np.argsort(-lengths_N, kind="stable")
        batches = self._plan(lengths_N[longest_first], lengths.ladder(max_length), side.by_position)
        whole = sum(len(longest_first[start : start + size]) * length for start, size, length in batches)
        progress = Progress(len(table), unit="text", title=title) if title else None
        vectors_ND = None
        work = 0
        for start, size, length in batches:
            rows_B = longest_first[start : start + size]
            padded_B = np.pad(rows_B, (0, size - len(rows_B)), constant_values=-1)
            held = meshes.held_rows(size, self._mesh)
            batch = meshes.shard_batch(table.rectangle(padded_B[held], length), self._mesh, whole=False)
            with leakage.in_force(self._model, self._mesh):
                encoded_BD = np.asarray(side.encode(variables, batch))
            if vectors_ND is None:
                vectors_ND = np.zeros((len(table), encoded_BD.shape[1]), np.float32)
            vectors_ND[rows_B] = encoded_BD[: len(rows_B)]
            self.computed += size * length
            self.tokens += int(lengths_N[rows_B].sum())
            # By the share of the work, not of the texts: the longest come first.
            work += len(rows_B) * length
            done = round(len(table) * work / whole)
            if progress:
                progress.update(done, self.shown())
            if report:
                report(done)
        if progress:
            progress.close()
        return np.zeros((0, 0), np.float32) if vectors_ND is None else vectors_ND

    def shown(self) -> dict[str, str]:
        """Returns the share of padding in what was computed so far, for a line of progress."""
        return {"padding": f"{1 - self.tokens / self.computed:.1%}"} if self.computed else {}

    def _plan(
        self, lengths_N: np.ndarray, ladder: tuple[int, ...], by_position: bool
    ) -> list[tuple[int, int, int]]:
        """Returns the batches of texts of these lengths, longest first: the first text, how many, and the
        length they are padded to. The last may have fewer texts."""
        batches, start = [], 0
        while start < len(lengths_N):
            length = lengths.bucket(int(lengths_N[start]), ladder)
            size = self._rows(length, by_position=by_position)
            batches.append((start, size, length))
            start += size
        return batches

    def _rows(self, length: int, *, by_position: bool) -> int:
        """How many texts of a compiled length are encoded at a time."""
        rows = min(self._batch_size, self._positions // length) if by_position else self._batch_size
        return -(-max(rows, 1) // self._multiple) * self._multiple


class _Side:
    """One side's compiled function, and whether its cost goes by positions (layers), not by texts (a bag)."""

    def __init__(
        self, model: DualEncoder, tower: Any, method: Callable, mesh: Mesh, rules: Sequence[meshes.Rule]
    ):
        apply = constrained(
            lambda variables, batch: model.apply(variables, batch, method=method),
            mesh,
            rules,
            all_used=False,
        )
        # Whole on every device, so that every process has all rows.
        self.encode = jax.jit(apply, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self.by_position = hasattr(getattr(tower, "encoder", None), "num_layers")


def best_variables(run_dir: str | Path, task: Contrastive) -> tuple[int, Any]:
    """Returns (step, the model's variables as NumPy arrays) of a run's best checkpoint.

    Raises:
      CheckpointError: there is none, or it does not fit the model.
    """
    step, params, state = trained.on_host(run_dir, task, smallest_batch(task.model))
    return step, jax.device_get(task.variables(params, state))
