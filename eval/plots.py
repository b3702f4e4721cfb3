"""Plots of a run, drawn from its metrics.jsonl rows and results alone."""

import os
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def quality_over_training(
    path: str | os.PathLike,
    rows: Sequence[Mapping[str, float]],
    measure: str,
    levels: Mapping[str, float],
    *,
    title: str,
) -> None:
    """Draws a dev measure over training steps, with the loss above and other systems as levels.

    Args:
      path: the PNG to write.
      rows: of metrics.jsonl; those with `loss` make the upper curve, those with `measure` the lower.
      measure: the evaluators' name, such as "dev/mrr@10".
      levels: other systems' value of the same measure on the same queries, by name.
      title: what was trained, on what.

    Raises:
      ValueError: no row has `measure`.
    """
    quality = [(row["step"], row[measure]) for row in rows if row.get(measure) is not None]
    loss = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    if not quality:
        raise ValueError(f"no row has {measure!r}; there is nothing to draw")
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    figure.suptitle(title, fontsize=11)
    if loss:
        upper.plot(*zip(*loss, strict=True), color="0.35", linewidth=1.2)
    upper.set_ylabel("training loss")
    lower.plot(*zip(*quality, strict=True), marker="o", markersize=4, color="C0", label="dual encoder")
    for number, (name, value) in enumerate(levels.items(), 1):
        lower.axhline(value, color=f"C{number}", linestyle="--", linewidth=1.2, label=f"{name} ({value:.3f})")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("optimizer steps")
    lower.set_ylabel(measure)
    lower.legend(loc="lower right", fontsize=9)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
