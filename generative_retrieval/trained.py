"""A model that spells docids as a run left it."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from generative_retrieval.task import smallest_batch
from training import trained
from training.mesh import Layout

DOCIDS_FILE = "docids.npz"


def best(run_dir: str | Path, task: Any, mesh: Mesh, layout: Layout) -> tuple[int, Any]:
    """Returns (step, the model's variables) of a run's best checkpoint, see `training.trained.best`."""
    step, params, state = trained.best(run_dir, task, smallest_batch(task.model), mesh, layout)
    return step, task.variables(params, state)
