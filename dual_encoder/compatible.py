"""Training whose vectors can be searched among those of the model before: no index is made anew.

Letters: B queries, H listed negatives of each, N passages of the corpus and padding, D width, K classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dual_encoder import retriever
from dual_encoder.derived import OWN, Derived, Sizes, check_dense, of_base
from dual_encoder.towers import l2_normalize
from dual_encoder.vectors import VectorStore
from training.build import SpecError
from training.task import Batch, Metrics

_NO_DOCUMENT = np.iinfo(np.int32).max  # of padding, so that documents stay ascending


@dataclasses.dataclass(frozen=True)
class Stationary(Derived):
    """Vectors held to fixed prototypes, and to those of the model before.

    Biondi, Pernici, Ricci and Del Bimbo (2024), "Stationary Representations: Optimally Approximating
    Compatibility and Implications for Improved Model Replacements". The prototypes of classes are the corners
    of a regular simplex, which no training moves, so that models of a sequence put a class in the same place;
    from the second model on, what a document's vector is now is pulled to what it was:

        base loss + share * class_loss + (1 - share) * higher_order

    with the cross-entropy of scale * (vector of a query or of its document) @ prototypes against the group of
    the example, and InfoNCE from a document's vector now to those of before, times scale, where documents of
    its class are no negatives. The paper has the two last terms; its classes are labels. Here the base loss
    ranks documents, and the classes are the groups of `batch.groups` of the config, which all models of a
    sequence must share. All vectors count as of length 1. The first model has no `previous`, and `share` 1 in
    effect.

    Attributes:
      base: the contrastive Task.
      classes: K, at most D + 1; groups are numbered below it.
      previous: a run that has been evaluated, whose index is kept; "" for the first model.
      share: lambda of the paper; 0.1 there.
      scale: mu of the paper; 10 there.
      passages, parts, doc_ids, document_of_row: of the corpus; the experiment fills them in, see
        `dual_encoder.derived.Sizes`.

    Raises:
      ValueError: a number out of range, or a base with sparse layers.
    """

    classes: int = 2
    previous: str = ""
    share: float = 0.1
    scale: float = 10.0
    passages: int = 1
    parts: int = 1
    doc_ids: Sequence[str] = dataclasses.field(default=(), repr=False, compare=False)
    document_of_row: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    state_rules = ((f"^{OWN}/vectors$", ("batch", None)), (f"^{OWN}/documents$", ("batch",)))

    def __post_init__(self):
        check_dense(self.base, "stationary")
        if self.classes < 2:
            raise ValueError(f"classes is {self.classes}; it must be at least 2")
        if not 0 <= self.share <= 1 or not self.scale > 0:
            raise ValueError(f"share is {self.share} and scale {self.scale}; allowed: 0 to 1, and above 0")

    @property
    def reads(self) -> frozenset[str]:
        return self.base.reads | {"group"}

    def sized(self, sizes: Sizes) -> "Stationary":
        """Raises ValueError where there are more groups than classes."""
        if sizes.groups > self.classes:
            raise ValueError(f"classes is {self.classes}; allowed: {sizes.groups} or more, one a group")
        return dataclasses.replace(
            self,
            passages=sizes.passages,
            parts=sizes.parts,
            doc_ids=sizes.doc_ids,
            document_of_row=sizes.document_of_row,
        )

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        params, state = self.base.init(rng, batch)
        if not self.previous:
            return params, state
        shapes = jax.eval_shape(lambda: self.base.vectors(params, state, batch, rng, train=False)[0])
        size = -(-self.passages // self.parts) * self.parts
        own = {
            "vectors": jnp.zeros((size, shapes.shape[-1]), jnp.float32),
            "documents": jnp.full(size, _NO_DOCUMENT, jnp.int32),
        }
        return params, {**state, OWN: own}

    def begin(self, params: Any, state: Any, encode: Callable) -> Any:
        """Returns the state with the vectors of the index of `previous`.

        Raises:
          DataError: it has none.
          SpecError: it is of another collection or cut to other passages, or its vectors of another width.
        """
        del params, encode
        if not self.previous:
            return state
        store = VectorStore.open(retriever.vectors_folder(self.previous))
        size, width = state[OWN]["vectors"].shape
        if store.manifest["width"] != width or len(store) != self.passages:
            raise SpecError(
                f"task.previous is {self.previous}, whose index has {len(store):,} vectors of "
                f"{store.manifest['width']}; allowed: {self.passages:,} of {width}, as here"
            )
        for what, same in (
            ("documents", list(store.ids) == list(self.doc_ids)),
            ("passages of its documents", np.array_equal(store.text_of_row, self.document_of_row)),
        ):
            if not same:
                raise SpecError(
                    f"task.previous is {self.previous}, whose index has other {what} than config.data and "
                    "config.text make here; allowed: a run on the same collection, cut to passages alike"
                )
        more = size - len(store)
        own = {
            "vectors": np.pad(store.vectors(), ((0, more), (0, 0))),
            "documents": np.pad(store.text_of_row, (0, more), constant_values=_NO_DOCUMENT),
        }
        return {**state, OWN: own}

    def loss(
        self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Expects the arrays of `corpora.batches.contrastive`, `group` among them.

        Raises:
          ValueError: the batch has no groups, or there are more classes than prototypes of this width.
        """
        if "group" not in batch:
            raise ValueError("stationary needs the group of each example; config.batch.groups names none")
        query_BD, document_ND, _ = self.base.vectors(params, of_base(state), batch, rng, train=train)
        loss, metrics = self.base.compare(params, query_BD, document_ND, batch, rng=rng)
        own_BD = document_ND[:: batch["document_rows"].shape[1]]
        group_B = batch["group"]
        prototypes_KD = jnp.asarray(simplex(self.classes, query_BD.shape[1]))
        of_classes = sum(class_loss(x, group_B, prototypes_KD, self.scale) for x in (query_BD, own_BD)) / 2
        metrics = {**metrics, "class_loss": of_classes}
        if not self.previous:
            return loss + of_classes, (state, metrics)
        held = jax.lax.stop_gradient(state[OWN])
        before_BD = held["vectors"][jnp.searchsorted(held["documents"], batch["document_rows"][:, 0])]
        aligned = higher_order(own_BD, before_BD, group_B, self.scale)
        total = loss + self.share * of_classes + (1 - self.share) * aligned
        return total, (state, {**metrics, "higher_order": aligned})


def simplex(classes: int, width: int) -> np.ndarray:
    """Returns float32 [K, D]: unit vectors of which any two have the same cosine, -1 / (K - 1), in the first
    K - 1 numbers; the same whenever it is called.

    Raises:
      ValueError: K is above D + 1.

    >>> simplex(2, 3)
    array([[ 1.,  0.,  0.],
           [-1.,  0.,  0.]], dtype=float32)
    """
    if not 2 <= classes <= width + 1:
        raise ValueError(
            f"classes is {classes}; allowed: 2 to {width + 1}, one more than the width of vectors"
        )
    corners = np.zeros((classes, width))
    for row in range(classes - 1):
        # What is left of length 1; then one number in all later corners, for their cosine with this one.
        corners[row, row] = np.sqrt(1 - np.square(corners[row, :row]).sum())
        rest = corners[row + 1 :, :row] @ corners[row, :row]
        corners[row + 1 :, row] = (-1 / (classes - 1) - rest) / corners[row, row]
    return corners.astype(np.float32)


def class_loss(x_BD: jax.Array, group_B: jax.Array, prototypes_KD: jax.Array, scale: float) -> jax.Array:
    """Returns the mean cross-entropy [] of classes given vectors; a group that is no class gives NaN."""
    logs_BK = jax.nn.log_softmax(scale * l2_normalize(x_BD) @ prototypes_KD.T, axis=1)
    return -jnp.take_along_axis(logs_BK, group_B[:, None], axis=1, mode="fill").mean()


def higher_order(now_BD: jax.Array, before_BD: jax.Array, group_B: jax.Array, scale: float) -> jax.Array:
    """Returns the mean of -log(exp(s_ii) / (exp(s_ii) + sum over j of other classes of exp(s_ij))) [], with s
    = scale now @ before."""
    scores_BB = scale * l2_normalize(now_BD) @ l2_normalize(before_BD).T
    counts_BB = (group_B[:, None] != group_B[None, :]) | jnp.eye(len(group_B), dtype=bool)
    totals_B = jax.nn.logsumexp(jnp.where(counts_BB, scores_BB, -jnp.inf), axis=1)
    return (totals_B - jnp.diagonal(scores_BB)).mean()
