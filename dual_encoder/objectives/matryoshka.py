"""Matryoshka representations: the first numbers of a vector are a vector too.

    objective=dict(
        name="dual_encoder.objectives.matryoshka.matryoshka",
        objective=dict(name="dual_encoder.objectives.softmax.symmetric_info_nce"),
        widths=(32, 64, 128, 256, 512),
    )

How good they are is measured by the field `evaluation.widths` of a config.

Letters: B queries, N documents, D width, W numbers of a vector that are kept.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax

from dual_encoder.objectives.arrays import Metrics
from dual_encoder.towers import l2_normalize


def matryoshka(
    *,
    objective: Callable,
    widths: Sequence[int],
    weights_of_widths: Sequence[float] = (),
    normalize: bool = True,
) -> Callable:
    """Returns the objective sum_w c_w objective(the first w numbers of the vectors).

    Kusupati et al. (2022), "Matryoshka Representation Learning", with one objective for all widths, which has
    no head of its own; all c_w are 1 there.

    Args:
      objective: of vectors of any width; whatever arrays it names, this one names too.
      widths: ascending. The largest is usually D: a width that is not listed is not trained for.
      weights_of_widths: c_w, one a width; () for 1 each.
      normalize: whether what is kept of a vector is scaled to length 1, as where the towers' vectors are.

    Returns:
      `(query_vectors [B, D], document_vectors [N, D], *, ...) -> (loss [], metrics)`; the metrics are those
      of the largest width, and the loss of each, `loss@<width>`.

    Raises:
      ValueError: widths that are none, not ascending or not positive, or weights that are not one a width.
        When it is called: a width above D.

    Relations: with D alone it is `objective`.
    """
    widths = tuple(widths)
    if not widths or widths[0] < 1 or any(a >= b for a, b in itertools.pairwise(widths)):
        raise ValueError(f"widths is {widths}; allowed: ascending positive numbers")
    shares = tuple(weights_of_widths) or (1.0,) * len(widths)
    if len(shares) != len(widths) or min(shares) < 0:
        raise ValueError(f"weights_of_widths is {shares}; allowed: one a width, of {len(widths)}, 0 or more")

    @functools.wraps(objective)
    def nested(query_vectors: jax.Array, document_vectors: jax.Array, **arrays) -> tuple[jax.Array, Metrics]:
        if widths[-1] > query_vectors.shape[1]:
            raise ValueError(
                f"widths has {widths[-1]}; allowed: up to {query_vectors.shape[1]}, of the vectors"
            )
        total, losses = 0.0, {}
        for width, share in zip(widths, shares, strict=True):
            cut = (truncated(x, width, normalize=normalize) for x in (query_vectors, document_vectors))
            loss, metrics = objective(*cut, **arrays)
            total = total + share * loss
            losses[f"loss@{width}"] = loss
        return total, {**metrics, **losses}

    return nested


def truncated(vectors_ND: jax.Array, width: int, *, normalize: bool) -> jax.Array:
    """Returns the first `width` numbers of each vector, scaled to length 1 where `normalize`; where all of
    them are 0, they stay so."""
    return l2_normalize(vectors_ND[:, :width]) if normalize else vectors_ND[:, :width]
