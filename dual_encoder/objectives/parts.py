"""An objective of the whole vectors and of their parts.

Letters: B queries, N documents, D width.
"""

import functools
from collections.abc import Callable, Sequence

import jax

from dual_encoder.objectives.arrays import Metrics


def with_parts(*, objective: Callable, widths: Sequence[int], weight: float = 0.5) -> Callable:
    """Returns the objective(whole) + weight sum over parts of objective(part), where the vectors are parts of
    the given widths one after the other.

    Lin, Li and Lin (2023), "Aggretriever", train so in their code, with weight 1/2 for the part of the first
    token and for that of all others: each then ranks by itself too.

    Args:
      objective: of vectors of any width; whatever arrays it names, this one names too.
      widths: of the parts, all of D.
      weight: of each part's loss.

    Returns:
      `(query_vectors [B, D], document_vectors [N, D], *, ...) -> (loss [], metrics)`; the metrics are those
      of the whole, and the loss of each part, `part<number>`.

    Raises:
      ValueError: widths that are not positive; when it is called: that are not D together.
    """
    widths = tuple(widths)
    if not widths or min(widths) < 1:
        raise ValueError(f"widths is {widths}; allowed: positive numbers")

    @functools.wraps(objective)
    def parts(query_vectors: jax.Array, document_vectors: jax.Array, **arrays) -> tuple[jax.Array, Metrics]:
        if sum(widths) != query_vectors.shape[1]:
            raise ValueError(
                f"widths is {widths}; allowed: together {query_vectors.shape[1]}, that of the vectors"
            )
        total, metrics = objective(query_vectors, document_vectors, **arrays)
        start = 0
        for number, width in enumerate(widths):
            cut = slice(start, start + width)
            loss, _ = objective(query_vectors[:, cut], document_vectors[:, cut], **arrays)
            total, metrics = total + weight * loss, {**metrics, f"part{number}": loss}
            start += width
        return total, metrics

    return parts
