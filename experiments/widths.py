"""What cut vectors are worth: systems that search by the first numbers of a dual encoder's vectors.

For the fields `widths` and `funnel` of a config's `evaluation`. Each width is a system, exact search by so
many numbers, called `dual_encoder@<width>`; a funnel is one, `dual_encoder_funnel`, see `index.funnel`. Where
all vectors have length 1, what is cut of them is scaled to length 1 again.

Letters: Q queries, N rows of the corpus, D width of their vectors.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from dual_encoder import task as tasks
from dual_encoder.towers import DualEncoder
from dual_encoder.vectors import are_unit
from eval import bootstrap, plots
from experiments.cli import UsageError
from experiments.settings import Evaluation
from index import exact, funnel

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # vectors [Q, D], k -> scores, rows
FUNNEL = "dual_encoder_funnel"


def systems(settings: Evaluation, vectors_ND: np.ndarray) -> dict[str, Search]:
    """Returns by system the search that takes whole vectors of queries.

    Raises:
      UsageError: see `check`.
    """
    stages = [funnel.Stage(*stage) for stage in settings.funnel]
    if not (settings.widths or stages):
        return {}
    check(settings, vectors_ND.shape[1])
    unit = are_unit(vectors_ND)
    found = {f"dual_encoder@{width}": _at_width(vectors_ND, width, unit) for width in settings.widths}
    if stages:
        index = funnel.build(vectors_ND, stages, unit=unit)
        found[FUNNEL] = lambda queries_QD, k: funnel.search(index, queries_QD, k)
    return found


def of_vectors(model: DualEncoder) -> int:
    """Returns D, without making any parameter."""
    batch = tasks.documents(tasks.smallest_batch(model))
    vectors, _ = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), batch, method="encode_document")
    )
    return vectors.shape[-1]


def check(settings: Evaluation, whole: int) -> None:
    """Raises UsageError where a width is not below that of the vectors, `whole`."""
    for field, widths in (("widths", settings.widths), ("funnel", [width for width, _ in settings.funnel])):
        if any(width >= whole for width in widths):
            raise UsageError(
                f"config.evaluation.{field} has the width {max(widths)}; allowed: below {whole}, that of the "
                "vectors"
            )


def _at_width(vectors_ND: np.ndarray, width: int, unit: bool) -> Search:
    index = exact.build(funnel.cut(vectors_ND, width, unit=unit))
    return lambda queries_QD, k: exact.search(index, funnel.cut(queries_QD, width, unit=unit), k)


def plot(
    file: Path,
    settings: Evaluation,
    per_query: Mapping[str, Mapping[str, Mapping[str, float]]],
    whole: int,
    title: str,
) -> None:
    """Draws the first measure at each width, with what 95% of resamples of the queries have, and the funnel's
    at the width of its first stage."""
    measure = settings.measures[0]
    at = {f"dual_encoder@{width}": width for width in settings.widths} | {"dual_encoder": whole}
    if settings.funnel:
        at[FUNNEL] = settings.funnel[0][0]
    drawn = bootstrap.means({name: per_query[name][measure] for name in at})
    series: dict[str, list[plots.Point]] = {"exact search": [], "funnel": []}
    for name, width in at.items():
        mean = float(np.mean(list(per_query[name][measure].values())))
        low, high = np.quantile(drawn[name], (0.025, 0.975))
        series["funnel" if name == FUNNEL else "exact search"].append(plots.Point(width, mean, low, high))
    file.parent.mkdir(exist_ok=True)
    series = {name: points for name, points in series.items() if points}
    plots.lines(file, series, x="numbers of a vector", y=measure, title=title)
