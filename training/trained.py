"""A Task's parameters as a run left them, placed on a mesh or in the memory of the host."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from training import rules
from training.checkpoints import read_best
from training.mesh import Layout
from training.start import placed
from training.task import Batch, Task, TrainState, kept


def best(run_dir: str | Path, task: Task, batch: Batch, mesh: Mesh, layout: Layout) -> tuple[int, Any, Any]:
    """Returns (step, parameters, state) of a run's best checkpoint, which lie as the layout says.

    Args:
      run_dir: the run.
      task: its Task.
      batch: one that parameters can be shaped from, or its shapes.
      mesh: the devices.
      layout: where parameters lie on them; it need not be that of the training.

    Raises:
      CheckpointError: there is none, or it does not fit the model.
    """
    params, state = _shapes(task, batch)
    like = TrainState(step=(), params=params, state=state, opt_state=())
    like = placed(like, rules.shardings(like, mesh, layout.parameters))
    return read_best(Path(run_dir) / "checkpoints", like.params, like.state)


def on_host(run_dir: str | Path, task: Task, batch: Batch) -> tuple[int, Any, Any]:
    """Returns (step, parameters, state) of a run's best checkpoint as NumPy arrays, so that each of several
    processes has them whole; arguments and errors are those of `best`."""
    params, state = _shapes(task, batch)
    params, state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), (params, state))
    return read_best(Path(run_dir) / "checkpoints", params, state)


def _shapes(task: Task, batch: Batch) -> tuple[Any, Any]:
    params, state = jax.eval_shape(task.init, jax.random.key(0), batch)
    return params, kept(task, state)
