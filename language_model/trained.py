"""A language model as a run left it."""

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from language_model.causal import Causal, batch_shapes
from training import rules
from training.checkpoints import read_best
from training.mesh import Layout
from training.start import placed
from training.task import TrainState


def best(
    run_dir: str | Path, task: Causal, mesh: Mesh, layout: Layout, *, rows: int, length: int
) -> tuple[int, Any, Any]:
    """Returns (step, parameters, state) of a run's best checkpoint, which lie as the layout says.

    Args:
      run_dir: the run.
      task: its Task.
      mesh: the devices.
      layout: where parameters lie on them; it need not be that of the training.
      rows, length: of a batch that the model takes.

    Raises:
      CheckpointError: there is none, or it does not fit the model.
    """
    with jax.set_mesh(mesh):
        params, state = jax.eval_shape(task.init, jax.random.key(0), batch_shapes(rows, length))
    like = TrainState(step=(), params=params, state=state, opt_state=())
    like = placed(like, rules.shardings(like, mesh, layout.parameters))
    return read_best(Path(run_dir) / "checkpoints", like.params, like.state)
