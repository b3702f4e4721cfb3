"""A language model as a run left it."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from language_model.causal import Causal, batch_shapes
from moe import leakage
from training import trained
from training.mesh import Layout


def best(run_dir: str | Path, task: Causal, mesh: Mesh, layout: Layout) -> tuple[int, Any, Any]:
    """Returns (step, parameters, state) of a run's best checkpoint, see `training.trained.best`."""
    smallest = batch_shapes(leakage.group_rows(task.model), 1)  # shapes depend on no rows, length or devices
    return trained.best(run_dir, task, smallest, mesh, layout)
