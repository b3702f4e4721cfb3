"""Plots of runs, drawn from their metrics.jsonl rows and results alone."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


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
    figure = _figure((7, 5.2))
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
        _plain(axes)
    figure.savefig(path, dpi=120)


@dataclasses.dataclass(frozen=True)
class Point:
    """Where something stands, and between what it may as well stand.

    Attributes:
      x: a number, or a category's name.
      y: a mean.
      low, high: the ends of its interval; None for none.
      label: its name, where it is written beside it.
    """

    x: Any
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


def lines(
    path: str | os.PathLike,
    series: Mapping[str, Sequence[Point]],
    *,
    x: str,
    y: str,
    title: str,
) -> None:
    """Draws a line a series, with its points, and a band where they have intervals.

    Numbers on x stand at their place, on a logarithmic axis where all are positive and the largest is at
    least 20 times the smallest; anything else stands in the order in which it comes.

    Args:
      path: the file to write; its ending says which kind.
      series: name -> points.
      x, y: what the axes are called.
      title: what is shown, of what, and what the band is.

    Raises:
      ValueError: no points.
    """
    values = list(dict.fromkeys(point.x for points in series.values() for point in points))
    if not values:
        raise ValueError("series have no points; there is nothing to draw")
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    place = {value: value if numbers else i for i, value in enumerate(values)}
    figure = _figure((7, 4.4))
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    for number, (name, points) in enumerate(series.items()):
        points, color = sorted(points, key=lambda point: place[point.x]), f"C{number % 10}"
        xs = [place[point.x] for point in points]
        axes.plot(xs, [point.y for point in points], marker="o", markersize=4, color=color, label=name)
        known = [point for point in points if point.low is not None]
        if known:
            banded = [place[point.x] for point in known]
            low, high = [point.low for point in known], [point.high for point in known]
            axes.fill_between(banded, low, high, color=color, alpha=0.15, linewidth=0)
            axes.vlines(banded, low, high, color=color, alpha=0.5, linewidth=1)  # all there is of one point
    if numbers and min(values) > 0 and max(values) >= 20 * min(values):
        axes.set_xscale("log")
    if len(values) <= 12:
        axes.set_xticks([place[value] for value in values], [str(value) for value in values])
        axes.minorticks_off()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if len(series) > 1:
        axes.legend(fontsize=9)
    _plain(axes)
    figure.savefig(path, dpi=120)


def pareto(
    path: str | os.PathLike, series: Mapping[str, Sequence[Point]], *, x: str, y: str, title: str
) -> None:
    """Draws points with their names, and the front of those that no other beats: less x, more y.

    Args:
      path: the file to write; its ending says which kind.
      series: name -> points with numbers for x; a series has one color.
      x, y, title: see `lines`.

    Raises:
      ValueError: no points.
    """
    points = [point for of in series.values() for point in of]
    if not points:
        raise ValueError("series have no points; there is nothing to draw")
    figure = _figure((7, 4.4))
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    best = [points[i] for i in front([(point.x, point.y) for point in points])]
    xs, ys = [point.x for point in points], [point.y for point in points]
    if min(xs) > 0 and max(xs) >= 20 * min(xs):
        axes.set_xscale("log")
    axes.margins(x=0.2, y=0.15)  # room for the labels
    for number, (name, of) in enumerate(series.items()):
        color = f"C{number % 10}"
        axes.scatter([point.x for point in of], [point.y for point in of], color=color, label=name, zorder=3)
        for point in of:
            if point.low is not None:
                axes.vlines(point.x, point.low, point.high, color=color, alpha=0.5, linewidth=1)
            axes.annotate(
                point.label, (point.x, point.y), xytext=(5, 4), textcoords="offset points", fontsize=8
            )
    right = axes.get_xlim()[1]
    axes.step(
        [*(point.x for point in best), right],
        [*(point.y for point in best), best[-1].y],
        where="post", color="0.5", linestyle="--", linewidth=1.2, label="front",
    )  # fmt: skip
    axes.set_xlim(right=right)
    axes.set_ylim(min(ys + [p.low for p in points if p.low is not None]) - 0.1 * (max(ys) - min(ys) or 0.01))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(fontsize=9)
    _plain(axes)
    figure.savefig(path, dpi=120)


def heatmaps(
    path: str | os.PathLike,
    panels: Mapping[str, np.ndarray],
    rows: Sequence[str],
    *,
    x: str,
    y: str,
    value: str,
    title: str,
    middle: float | None = None,
) -> None:
    """Draws matrices with the same rows as fields of color, one scale for all.

    Args:
      path: the file to write; its ending says which kind.
      panels: name -> float [rows, columns]; NaN is left white.
      rows: the rows' names, from the top.
      x, y, value: what columns, rows and colors are.
      title: what is shown, of what.
      middle: the value that is neither much nor little, such as an even share, where the colors change; the
        scale goes from 0 to twice that at least. None for a scale from 0 to the largest value.

    Raises:
      ValueError: no panels, or one whose rows are not as many as their names.
    """
    if not panels:
        raise ValueError("panels is empty; there is nothing to draw")
    for name, values in panels.items():
        if values.ndim != 2 or len(values) != len(rows):
            raise ValueError(f"{name} has the shape {values.shape}; allowed: {len(rows)} rows")
    across = min(len(panels), 3 if max(len(values[0]) for values in panels.values()) <= 16 else 2)
    down = -(-len(panels) // across)
    figure = _figure((1.5 + 3.6 * across, 1.1 + down * max(1.1, 0.55 + 0.26 * len(rows))))
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(down, across, squeeze=False)
    largest = max(float(np.nanmax(values, initial=0.0)) for values in panels.values())
    if middle is None:
        norm, colors = Normalize(0, largest or 1), "viridis"
    else:
        norm, colors = TwoSlopeNorm(middle, 0, max(largest, 2 * middle)), "RdBu_r"
    for number, axes in enumerate(grid.flat):
        if number >= len(panels):
            axes.set_visible(False)
            continue
        name, values = list(panels.items())[number]
        drawn = axes.imshow(values, aspect="auto", norm=norm, cmap=colors, interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_yticks(range(len(rows)), rows if number % across == 0 else [""] * len(rows), fontsize=8)
        if number % across == 0:
            axes.set_ylabel(y)
        if number + across >= len(panels):
            axes.set_xlabel(x)
    figure.colorbar(drawn, ax=grid.ravel().tolist(), label=value)
    figure.savefig(path, dpi=120)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the places of the points that no other beats, by ascending x.

    A point beats another with no more x and no less y, and less of the one or more of the other. Of equal
    points the first is kept.

    >>> front([(1.0, 0.3), (2.0, 0.2), (3.0, 0.5)])
    [0, 2]
    """
    kept, best = [], -math.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if points[i][1] > best:
            kept.append(i)
            best = points[i][1]
    return kept


def _figure(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
