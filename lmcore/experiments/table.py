"""A comparison as a table: for a terminal, for a page in Markdown, and as CSV for programs."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Literal

from lmcore.experiments.compare import Comparison
from lmcore.experiments.significance import measure_deviation

Format = Literal["text", "markdown", "csv"]
SIGNIFICANT = 0.05
MAX_DECIMALS = 6  # as many as the pipeline's metrics have
NOTHING = "-"


def render(comparison: Comparison, form: Format) -> Iterator[str]:
    """The table's lines, without the comparison's notes."""
    if form == "csv":
        yield from _render_csv(comparison)
        return
    head, rows = _tabulate(comparison)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    if form == "markdown":
        head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
        yield f"| {' | '.join(head)} |"
        yield f"|{'|'.join(['---'] * len(head))}|"
        yield from (f"| {' | '.join(row)} |" for row in rows)
        return
    for row in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _tabulate(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The heads of the columns and the rows, as people read them."""
    head = [*comparison.params, "experiments", "n"]
    for metric, differences in comparison.metrics.items():
        head += [metric] if differences is None else [metric, "difference (95 %)", "p"]
    rows = []
    for place, group in enumerate(comparison.groups):
        others = len(group.members) - 1
        name = group.name + (f" +{others}" if others else "")
        params = [group.param(param) or NOTHING for param in comparison.params]
        cells = [cell for metric in comparison.metrics for cell in _describe(comparison, metric, place)]
        rows.append([*params, name, str(len(group.members)), *cells])
    return head, rows


def _describe(comparison: Comparison, metric: str, place: int) -> list[str]:
    """The cells of one metric in one row."""
    group, differences = comparison.groups[place], comparison.metrics[metric]
    sample = group.sample(metric)
    if differences is None:
        decimals = 0 if len(set(sample)) == 1 else 1  # of equal counts, else of their mean
        return [f"{fmean(sample):,.{decimals}f}" if sample else NOTHING]
    decimals = _choose_decimals([other.sample(metric) for other in comparison.groups])
    mean = f"{fmean(sample):.{decimals}f}" if sample else NOTHING
    if (deviation := measure_deviation(sample)) is not None:
        mean += f" ± {deviation:.{decimals}f}"
    if 0 < len(sample) < len(group.members):
        mean += f" (n = {len(sample)})"
    if group is comparison.baseline:
        return [mean, "baseline", ""]
    difference = differences[place]
    shown = p_value = NOTHING
    if difference is not None:
        shown = f"{difference.value:+.{decimals}f}"
        if difference.interval is not None and difference.p_value is not None:
            low, high = difference.interval
            shown += f" ({low:+.{decimals}f} to {high:+.{decimals}f})"
            p_value = "< 0.0001" if difference.p_value < 0.0001 else f"{difference.p_value:.4f}"
            p_value += " *" if difference.p_value < SIGNIFICANT else ""
    return [mean, shown, p_value]


def _choose_decimals(samples: Sequence[Sequence[float]]) -> int:
    """So many that the smallest spread has two digits, or, where there is none, the values six."""
    if spreads := [deviation for sample in samples if (deviation := measure_deviation(sample))]:
        return min(MAX_DECIMALS, max(0, 1 - math.floor(math.log10(min(spreads)))))
    largest = max((abs(value) for sample in samples for value in sample), default=0.0)
    return min(MAX_DECIMALS, max(0, 5 - math.floor(math.log10(largest)))) if largest else 1


def _render_csv(comparison: Comparison) -> Iterator[str]:
    """A row for each group with numbers as they are; what does not exist is empty."""
    fields = ("mean", "sd", "n", "difference", "low", "high", "p")
    head = [*comparison.params, "experiments", "n"]
    head += [f"{metric}.{name}" for metric in comparison.metrics for name in fields]
    rows: list[Sequence[object]] = [head]
    for place, group in enumerate(comparison.groups):
        names = " ".join(member.name for member in group.members)
        row: list[object] = [group.param(param) for param in comparison.params]
        row += [names, len(group.members)]
        for metric, differences in comparison.metrics.items():
            sample = group.sample(metric)
            difference = differences[place] if differences else None
            row += [fmean(sample), measure_deviation(sample), len(sample)] if sample else [None, None, 0]
            interval = difference.interval if difference and difference.interval else (None, None)
            row += [difference.value, *interval, difference.p_value] if difference else [None] * 4
        rows.append(row)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    yield from text.getvalue().splitlines()
