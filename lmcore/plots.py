"""The training curve and the corpus as SVG pictures that read well on a light and on a dark page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from lmcore.files import write_file

INK, FAINT, GRID = "#24292f", "#6e7781", "#eaeef2"
TRAIN, VALIDATION, RATE = "#9ec5e8", "#1f5f9e", "#c8d1da"
# Points in one line. More would be narrower than the line is wide, and make the file heavy.
TRAIN_POINTS, VALIDATION_POINTS, RATE_POINTS = 240, 60, 120
STYLE = {"svg.hashsalt": "lmcore", "font.family": "DejaVu Sans", "font.size": 10}

Row = Mapping[str, Any]


def draw_training(rows: Sequence[Row], out: Path) -> None:
    """Draw training and validation loss over the learning rate against the step; the same rows give the same bytes.

    `rows` have step, tokens, train_loss, val_loss, learning_rate, as in reports/plots/training.csv; None or "" is no
    value.
    """
    with _drawing(out, height=4.6) as figure:
        losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
        _draw_losses(losses, rows)
        _draw_rates(rates, rows)


def draw_corpus(lengths: Mapping[int, int], outcomes: Mapping[str, int], out: Path) -> None:
    """Draw how long the kept documents are, and what became of all of them.

    `lengths`: documents from so many characters up to twice as many, by that power of two; `outcomes`: by name, in the
    order to show.
    """
    with _drawing(out, height=3.2) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        edges = sorted(lengths)
        left.bar(range(len(edges)), [lengths[edge] for edge in edges], color=TRAIN, width=0.9, zorder=2)
        left.set_xticks(range(len(edges)), [f"{edge:,}" for edge in edges], rotation=60, fontsize=8)
        left.set_title("Documents by length, from characters", loc="left", color=INK, fontsize=11, fontweight="bold")
        names = list(outcomes)
        bars = right.barh(names, [outcomes[name] for name in names], color=TRAIN, zorder=2)
        right.bar_label(bars, [f"{outcomes[name]:,}" for name in names], padding=4, color=FAINT, fontsize=8)
        right.invert_yaxis()
        right.set_title("What became of them", loc="left", color=INK, fontsize=11, fontweight="bold")
        for axes in (left, right):
            _tidy(axes)
        right.grid(visible=False)
        right.set_xticks([])
        right.margins(x=0.2)


@contextmanager
def _drawing(out: Path, height: float) -> Iterator[Figure]:
    """A figure eight inches wide, in our style, written when the block ends well; the same figure, the same bytes."""
    with context(["default", STYLE]):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(8, height), facecolor="white", layout="constrained")
        yield figure
        with write_file(out) as file:
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _draw_losses(axes: Axes, rows: Sequence[Row]) -> None:
    """Training loss as a thin line, validation loss as points on a line, its last value written beside it."""
    steps, values = average(*_column(rows, "train_loss"), TRAIN_POINTS)
    axes.plot(steps, values, color=TRAIN, linewidth=1.2, label="training", zorder=2)
    steps, values = select(*_column(rows, "val_loss"), VALIDATION_POINTS)
    axes.plot(
        steps,
        values,
        color=VALIDATION,
        linewidth=1.8,
        marker="o",
        markersize=4,
        markeredgecolor="white",
        markeredgewidth=0.7,
        label="validation",
        zorder=3,
    )
    _tidy(axes)
    axes.set_title("Loss, nats per token", loc="left", color=INK, fontsize=11, fontweight="bold")
    axes.legend(loc="upper right", frameon=False, labelcolor=INK)
    if steps:
        axes.annotate(
            f"{values[-1]:.3f}",
            (steps[-1], values[-1]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=VALIDATION,
            fontweight="bold",
            annotation_clip=False,
        )


def _draw_rates(axes: Axes, rows: Sequence[Row]) -> None:
    """The learning rate as a faint area."""
    steps, values = _column(rows, "learning_rate")
    peak = max(values, default=1.0) or 1.0
    axes.fill_between(*select(steps, values, RATE_POINTS), color=RATE, linewidth=0, zorder=2)
    _tidy(axes)
    axes.set_yticks([0.0, peak], ["0", f"{peak:.2g}"])
    axes.set_ylim(0.0, 1.1 * peak)
    axes.set_title("Learning rate", loc="left", color=FAINT, fontsize=9)
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _tidy(axes: Axes) -> None:
    """Horizontal grid lines instead of a frame."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color=GRID, zorder=0)
    axes.tick_params(colors=FAINT, length=0)
    axes.margins(x=0.01)


def _column(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have a finite value under `name`."""
    pairs = [(float(row["step"]), float(row[name])) for row in rows if row.get(name) not in (None, "")]
    finite = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def average(steps: list[float], values: list[float], limit: int) -> tuple[list[float], list[float]]:
    """At most `limit` points, each the mean of as many neighbours. With limit 2, 1 2 3 4 -> 1.5 3.5."""
    group = max(1, math.ceil(len(steps) / limit))
    starts = range(0, len(steps), group)
    return [fmean(steps[at : at + group]) for at in starts], [fmean(values[at : at + group]) for at in starts]


def select(steps: list[float], values: list[float], limit: int) -> tuple[list[float], list[float]]:
    """At most `limit` of the points, evenly spaced, the last among them. With limit 2, 1 2 3 4 -> 2 4."""
    stride = max(1, math.ceil(len(steps) / limit))
    return steps[::-stride][::-1], values[::-stride][::-1]
