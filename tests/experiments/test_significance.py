"""Welch's test and Holm's correction against worked examples and SciPy's own test."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from lmcore.experiments.significance import Difference, adjust_p_values, compare_samples, measure_deviation


def test_welch_by_hand() -> None:
    # Means 2 and 6, variances 1 and 4: t = 4 / sqrt(1/3 + 4/3) = 3.0984 with (5/3)^2 / ((1/3)^2/2 + (4/3)^2/2) = 2.9412
    # degrees of freedom, whose 97.5 % point is 3.2187; twice the tail above t is 0.0547.
    found = compare_samples((1.0, 2.0, 3.0), (4.0, 6.0, 8.0))
    assert found.value == 4
    assert found.interval == pytest.approx((4 - 3.2187 * math.sqrt(5 / 3), 4 + 3.2187 * math.sqrt(5 / 3)), rel=1e-3)
    assert found.p_value == pytest.approx(0.0547, abs=1e-3)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 5), (10, 4)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_welch_is_scipys(sizes: tuple[int, int], scale: float) -> None:
    source = np.random.default_rng(sum(sizes))
    first, second = source.normal(3, 1, sizes[0]) * scale, source.normal(4, 2, sizes[1]) * scale
    found = compare_samples(first.tolist(), second.tolist())
    expected = ttest_ind(second, first, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.value == pytest.approx(second.mean() - first.mean())


@pytest.mark.parametrize(
    ("first", "second"), [((1.0,), (2.0, 3.0)), ((1.0, 2.0), (3.0,)), ((0.1, 0.1), (0.3, 0.3, 0.3))]
)
def test_too_little_says_nothing(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    found = compare_samples(first, second)
    assert found == Difference(pytest.approx(sum(second) / len(second) - sum(first) / len(first)))


def test_a_spread_on_one_side_is_enough() -> None:
    assert compare_samples((1.0, 1.0), (2.0, 3.0)).p_value == pytest.approx(ttest_1samp([2.0, 3.0], 1.0).pvalue)


def test_holm_by_hand() -> None:
    # Holm 1979: 0.01 * 3, 0.04 * 2 and 0.03 * 2; none below one before it.
    assert adjust_p_values([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_p_values([0.5, None, 0.6, None]) == [1.0, None, 1.0, None]
    assert adjust_p_values([None, 0.2]) == [None, 0.2]
    assert adjust_p_values([]) == []


def test_deviation_divides_by_one_less() -> None:
    assert measure_deviation((1.0, 3.0)) == math.sqrt(2)
    assert measure_deviation((1.0,)) is None
