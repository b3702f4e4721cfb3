"""What a Task that is made around a contrastive one shares with the others of its kind.

Such a Task holds the contrastive one as `base`. Its state is that of the base and, beside it, under the name
`own`, what it carries itself: a queue, frozen vectors, weights of groups. Whoever only encodes needs no more
than `model` and `variables`, and a checkpoint that is kept as best holds nothing of `own`.

Two methods more are optional; experiments.contrastive calls them before a training:

    sized(sizes) -> Task                   at every start, with how much there is of what it trains on
    begin(params, state, encode) -> state  before the first step only, with the parameters to begin with;
                                           `encode(variables) -> (float32 [R, D], int32 [R])` encodes the
                                           corpus: a vector of each passage, and the document it is of
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dual_encoder.task import Contrastive, documents, queries
from dual_encoder.towers import DualEncoder
from training import paths
from training.task import Batch

OWN = "own"


class Sizes(NamedTuple):
    """How much there is of what a Task trains on, and which documents these are.

    Attributes:
      passages: of the corpus.
      parts: into how many devices cut what they share.
      groups: of training examples, see `batch.groups`; 0 where there are none.
      one_group: whether each batch is of one of them.
      doc_ids: of the documents of the corpus.
      document_of_row: int32 [passages], the document that each is of.
    """

    passages: int
    parts: int
    groups: int
    one_group: bool = False
    doc_ids: Sequence[str] = ()
    document_of_row: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Derived:
    """Attributes:
    base: the contrastive Task, with the model and what its loss needs.
    """

    base: Contrastive

    @property
    def model(self) -> DualEncoder:
        return self.base.model

    @property
    def frozen(self) -> tuple[str, ...]:
        """See training.frozen."""
        return self.base.frozen

    @property
    def reads(self) -> frozenset[str]:
        """See dual_encoder.task.Contrastive."""
        return self.base.reads

    def variables(self, params: Any, state: Any) -> dict[str, Any]:
        """Returns what the model is applied with."""
        return self.base.variables(params, of_base(state))

    def kept(self, state: Any) -> Any:
        """Returns what of the state a best checkpoint holds."""
        return of_base(state)


def of_base(state: Any) -> dict[str, Any]:
    """Returns the state without what the derived Task carries itself."""
    return {name: held for name, held in state.items() if name != OWN}


def parameters_of_towers(model: DualEncoder, batch: Batch) -> tuple[set[str], set[str]]:
    """Returns the paths of the parameters that queries are encoded with, and those of documents."""

    def of(side: Any, texts: dict[str, jax.Array]) -> set[str]:
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), texts, method=side))
        return set(paths.paths(shapes["params"]))

    return of(model.encode_query, queries(batch)), of(model.encode_document, documents(batch))


def check_dense(task: Contrastive, name: str) -> None:
    """Raises ValueError where the base has sparse layers, whose sums a derived Task has no place for."""
    if task.auxiliary is not None:
        raise ValueError(f"{name}: base has auxiliary; allowed: none, for a dense model")


def check_unmeasured(task: Contrastive, name: str) -> None:
    """Raises ValueError where the base has measures, which are of scores that a Task does not make."""
    if task.measures:
        raise ValueError(
            f"{name}: base has measures {', '.join(task.measures)}; allowed: none, {{}}, for the base's "
            "objective takes no part"
        )


def check_whole(task: Contrastive, name: str) -> None:
    """Raises ValueError where the base encodes a batch in chunks."""
    if task.chunks != 1:
        raise ValueError(f"{name}: base has chunks {task.chunks}; allowed: 1")
