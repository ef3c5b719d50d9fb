"""Whether two samples differ by more than chance: Welch's t test, and Holm's correction for several of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """How much larger a mean is than the baseline's, by whatever test.

    `interval` is where the true difference lies with 95 % confidence, `p_value` how likely one as large is by chance;
    None where the samples do not tell.
    """

    value: float
    interval: tuple[float, float] | None = None
    p_value: float | None = None


def measure_deviation(sample: Sequence[float]) -> float | None:
    """Return the standard deviation, n - 1 below; None of a single value."""
    return stdev(sample) if len(sample) > 1 else None


def compare_samples(baseline: Sequence[float], other: Sequence[float]) -> Difference:
    """Welch's t test (Welch 1947): the samples are independent and their variances may differ.

    It needs two values on each side, and a spread on one.
    """
    value = fmean(other) - fmean(baseline)
    variances = [(measure_deviation(sample) or 0.0) ** 2 / len(sample) for sample in (baseline, other)]
    variance = sum(variances)
    if min(len(baseline), len(other)) < 2 or variance == 0:
        return Difference(value)
    # The degrees of freedom by Welch and Satterthwaite.
    shares = [part / variance for part in variances]
    sizes = (len(baseline), len(other))
    freedom = 1 / sum(share**2 / (size - 1) for share, size in zip(shares, sizes, strict=True))
    error = math.sqrt(variance)
    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Difference(value, (value - reach, value + reach), 2 * float(stdtr(freedom, -abs(value) / error)))


def adjust_p_values(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction (Holm 1979): the chance of one or more false alarms among all stays below the level.

    None, where nothing was tested, stays None and does not count.
    """
    tested = sorted((p_value, place) for place, p_value in enumerate(p_values) if p_value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p_value, place) in enumerate(tested):
        largest = max(largest, min(1.0, p_value * (len(tested) - rank)))
        adjusted[place] = largest
    return adjusted
