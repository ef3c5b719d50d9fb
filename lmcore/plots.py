"""Training, corpus and comparisons as pictures that read well on a light and on a dark page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.style import context
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from lmcore.files import write_file

INK, FAINT, GRID = "#24292f", "#6e7781", "#eaeef2"
TRAIN, VALIDATION, RATE = "#9ec5e8", "#1f5f9e", "#c8d1da"
# Points in one line. More would be narrower than the line is wide, and make the file heavy.
TRAIN_POINTS, VALIDATION_POINTS, RATE_POINTS = 240, 60, 120
MARKED: Mapping[str, Any] = {
    "marker": "o",
    "markeredgecolor": "white",
    "markeredgewidth": 0.7,
    "zorder": 3,
}  # points on a line
STYLE = {"svg.hashsalt": "lmcore", "font.family": "DejaVu Sans", "font.size": 10}

LABELLED_VALUES = 10  # up to so many values of a parameter are written below the axis, each where it is

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Series:
    """What was measured at each place: values by a parameter's number, or by its word; or losses by tokens."""

    label: str
    points: Mapping[float | str, Sequence[float]]


def draw_training(rows: Sequence[Row], out: Path) -> None:
    """Draw training and validation loss over the learning rate against the step; the same rows give the same bytes.

    `rows` have step, tokens, train_loss, val_loss, learning_rate, as in reports/plots/training.csv; None or "" is no
    value.
    """
    with _drawing(out, height=4.6) as figure:
        losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
        points = average(*_column(rows, "train_loss"), TRAIN_POINTS)
        losses.plot(*points, color=TRAIN, linewidth=1.2, label="training", zorder=2)
        steps, values = select(*_column(rows, "val_loss"), VALIDATION_POINTS)
        losses.plot(steps, values, color=VALIDATION, linewidth=1.8, markersize=4, label="validation", **MARKED)
        _tidy(losses, "Loss, nats per token")
        losses.legend(loc="upper right", frameon=False, labelcolor=INK)
        if steps:
            losses.annotate(
                f"{values[-1]:.3f}",
                (steps[-1], values[-1]),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=VALIDATION,
                fontweight="bold",
                annotation_clip=False,
            )
        steps, values = _column(rows, "learning_rate")
        peak = max(values, default=1.0) or 1.0
        rates.fill_between(*select(steps, values, RATE_POINTS), color=RATE, linewidth=0, zorder=2)
        _tidy(rates)
        rates.set_title("Learning rate", loc="left", color=FAINT, fontsize=9, fontweight="normal")
        rates.set_yticks([0.0, peak], ["0", f"{peak:.2g}"])
        rates.set_ylim(0.0, 1.1 * peak)
        rates.set_xlabel("step", color=INK)
        rates.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        rates.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


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
        bars = right.barh(list(outcomes), list(outcomes.values()), color=TRAIN, zorder=2)
        right.bar_label(bars, [f"{count:,}" for count in outcomes.values()], padding=4, color=FAINT, fontsize=8)
        right.invert_yaxis()
        _tidy(left, "Documents by length, from characters")
        _tidy(right, "What became of them")
        right.grid(visible=False)
        right.set_xticks([])
        right.margins(x=0.2)


def draw_metrics(panels: Mapping[str, Sequence[Series]], parameter: str, out: Path, *, logarithmic: bool) -> None:
    """Draw each metric over a parameter: means on a line, their standard deviations, and every value as a faint dot.

    Words stand side by side and have no line. All series of a panel are of the same kind.
    """
    with _drawing(out, height=1 + 2.8 * len(panels)) as figure:
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (metric, lines) in zip(rows, panels.items(), strict=True):
            _draw_metric(axes, lines)
            _tidy(axes, metric)
            axes.margins(x=0.06, y=0.1)
        if logarithmic:
            axes.set_xscale("log")
        places = sorted({place for lines in panels.values() for line in lines for place in line.points}, key=str)
        numbers = [place for place in places if not isinstance(place, str)]
        if len(numbers) == len(places) <= LABELLED_VALUES:
            axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(parameter, color=INK)


def draw_curves(curves: Sequence[Series], out: Path) -> None:
    """Draw losses over the tokens seen; curves of one label have one colour."""
    labels = list(dict.fromkeys(curve.label for curve in curves))
    named: dict[str, Line2D] = {}
    with _drawing(out, height=4.2) as figure:
        axes = figure.subplots()
        for curve in curves:
            colour = _choose_colour(labels.index(curve.label), len(labels))
            tokens = [float(place) for place in curve.points]
            losses = [fmean(values) for values in curve.points.values()]
            (line,) = axes.plot(*select(tokens, losses, RATE_POINTS), color=colour, linewidth=1.4, zorder=2)
            named.setdefault(curve.label, line)
        _tidy(axes, "Validation loss, nats per token")
        axes.set_xlabel("tokens seen in training", color=INK)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.legend(named.values(), named.keys(), loc="upper right", frameon=False, labelcolor=INK)


def _draw_metric(axes: Axes, lines: Sequence[Series]) -> None:
    for number, line in enumerate(lines):
        colour = _choose_colour(number, len(lines))
        measured = {place: values for place, values in line.points.items() if values}
        dots = [(place, value) for place, values in measured.items() for value in values if len(values) > 1]
        if dots:
            axes.plot(*zip(*dots, strict=True), "o", color=colour, alpha=0.3, markersize=3.5, zorder=2)
        axes.errorbar(
            list(measured),
            [fmean(values) for values in measured.values()],
            [stdev(values) if len(values) > 1 else 0.0 for values in measured.values()],
            color=colour,
            linestyle="none" if any(isinstance(place, str) for place in measured) else "-",
            linewidth=1.6,
            elinewidth=1.2,
            markersize=5.5,
            label=line.label or None,
            **MARKED,
        )
    if any(line.label for line in lines):
        axes.legend(frameon=False, labelcolor=INK)


def _choose_colour(number: int, count: int) -> str | tuple[float, ...]:
    """Of so many that must be told apart; the scale goes from dark violet to a green that shows on white."""
    return VALIDATION if count == 1 else tuple(colormaps["viridis"](0.8 * number / (count - 1)))


@contextmanager
def _drawing(out: Path, height: float) -> Iterator[Figure]:
    """A figure eight inches wide, in our style, written when the block ends well; the same figure, the same bytes.

    As SVG, or as PNG where the file's name ends so.
    """
    with context(["default", STYLE]):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(8, height), facecolor="white", layout="constrained")
        yield figure
        with write_file(out) as file:
            is_png = out.suffix == ".png"
            metadata = ("Software",) if is_png else ("Date", "Creator")
            figure.savefig(file, format="png" if is_png else "svg", metadata=dict.fromkeys(metadata))


def _tidy(axes: Axes, title: str = "") -> None:
    """Horizontal grid lines instead of a frame, and a title."""
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
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
