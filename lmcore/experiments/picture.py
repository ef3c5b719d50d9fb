"""A comparison as a picture: a metric over the parameter that differs, and the losses of all its trainings."""

import csv
from collections.abc import Sequence
from pathlib import Path

from lmcore.errors import DataError, ParameterError
from lmcore.experiments.compare import Comparison, rank
from lmcore.experiments.experiments import read_file
from lmcore.experiments.groups import Group
from lmcore.plots import Series, draw_curves, draw_metrics

CURVE = "reports/plots/training.csv"
FORMATS = (".svg", ".png")
LOGARITHMIC_RATIO = 10.0  # of a parameter's largest to its smallest value: from here on their ratios are what counts
NOT_SET = "not set"


def plot_metrics(comparison: Comparison, out: Path, *, every_metric: bool) -> None:
    """Draw the first metric, or every one, over the parameter that differs; a second one that differs parts the lines.

    Of two the one with more values is the axis; learning rates, and what spans a factor of ten, on a logarithmic one.
    Raises ParameterError where none or more than two differ, and for a file that is neither .svg nor .png.
    """
    _check_format("--plot", out)
    axis, parting = _choose_parameters(comparison)
    numbers = _read_numbers(comparison, axis)
    names = [name for name, differences in comparison.metrics.items() if differences is not None]
    names = names or list(comparison.metrics)
    draw_metrics(
        {name: _gather(comparison, name, axis, parting) for name in names[: None if every_metric else 1]},
        axis,
        out,
        logarithmic=numbers is not None
        and min(numbers) > 0
        and (axis.endswith("learning_rate") or max(numbers) / min(numbers) >= LOGARITHMIC_RATIO),
    )


def plot_curves(comparison: Comparison, root: Path, out: Path) -> None:
    """Draw the validation loss of every finished experiment over the tokens it has seen; seeds share a colour.

    Raises ArtifactError for one whose curve git does not have, as MLflow's.
    """
    _check_format("--curves", out)
    curves = []
    for group in comparison.groups:
        label = ", ".join(_describe(group, name) for name in comparison.params) or group.name
        for member in group.members:
            rows = csv.DictReader(read_file(member.name, member.code, CURVE, root).splitlines())
            points: dict[float | str, list[float]] = {
                float(row["tokens"]): [float(row["val_loss"])] for row in rows if row["val_loss"]
            }
            if not points:
                raise DataError(
                    f"--curves: {member.name} measured no validation loss on the way: lower train.eval_every"
                )
            curves.append(Series(label, points))
    draw_curves(curves, out)


def _check_format(option: str, out: Path) -> None:
    if out.suffix not in FORMATS:
        raise ParameterError(f"{option} {out}: the name must end with {' or '.join(FORMATS)}")


def _choose_parameters(comparison: Comparison) -> tuple[str, str | None]:
    """The parameter along the axis, and the one that parts the lines."""
    params = comparison.params
    if not params:
        raise ParameterError("--plot: no parameter differs between the experiments: there is nothing to draw over")
    if len(params) > 2:
        raise ParameterError(
            f"--plot: {len(params)} parameters differ ({', '.join(params)}): name some that differ in two at most"
        )

    def worth(name: str) -> tuple[int, bool]:
        values = {group.param(name) for group in comparison.groups}
        return len(values), _read_numbers(comparison, name) is not None

    axis, *parting = sorted(params, key=worth, reverse=True)
    return axis, parting[0] if parting else None


def _read_numbers(comparison: Comparison, name: str) -> list[float] | None:
    """The values of a parameter in the groups; None if one of them is no number."""
    ranks = [rank(group.param(name)) for group in comparison.groups]
    return None if any(is_word for is_word, *_ in ranks) else [number for _, number, _ in ranks]


def _gather(comparison: Comparison, metric: str, axis: str, parting: str | None) -> list[Series]:
    """The metric's values by the axis's places, a series for each value of the parameter that parts them."""
    shown = [name for name in (parting, axis) if name]
    groups = sorted(comparison.groups, key=lambda group: [rank(group.param(name)) for name in shown])
    is_word = _read_numbers(comparison, axis) is None
    series: dict[str, dict[float | str, Sequence[float]]] = {}
    for group in groups:
        value = group.param(axis)
        points = series.setdefault(_describe(group, parting) if parting else "", {})
        points[(value or NOT_SET) if is_word else float(value)] = group.sample(metric)
    return [Series(label, points) for label, points in series.items()]


def _describe(group: Group, name: str) -> str:
    return f"{name.rpartition('.')[2]} {group.param(name) or NOT_SET}"
