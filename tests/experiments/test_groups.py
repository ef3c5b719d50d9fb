"""Groups and comparisons of experiments that were never run."""

import math

import pytest

from lmcore.experiments.compare import Comparison
from lmcore.experiments.experiments import Experiment
from lmcore.experiments.groups import compare_groups, find_differing, group_experiments, is_count
from lmcore.experiments.table import render


def experiment(name: str, rate: str, seed: int, code: str = "a", **metrics: float) -> Experiment:
    return Experiment(name, code, "finished", {"train.rate": rate, "train.seed": str(seed)}, metrics)


def test_a_group_is_one_commit() -> None:
    groups = group_experiments([experiment("x", "1", 1), experiment("y", "1", 2, code="b"), experiment("z", "1", 2)])
    assert [[member.name for member in group.members] for group in groups] == [["x", "z"], ["y"]]
    assert find_differing(groups) == []


def test_p_values_are_corrected_for_all_groups() -> None:
    values = {"0": (1.0, 2.0, 3.0), "1": (2.0, 3.0, 4.5), "2": (4.0, 5.0, 6.5)}
    made = [experiment(f"{rate}{seed}", rate, seed, loss=v) for rate, vs in values.items() for seed, v in enumerate(vs)]
    groups = group_experiments(made)
    base, near, far = compare_groups(groups, groups[0], "loss")
    _, alone = compare_groups(groups[::2], groups[0], "loss")
    assert base is None
    assert far is not None
    assert alone is not None
    assert far.p_value == pytest.approx(2 * (alone.p_value or 0))
    assert near is not None
    assert (near.p_value or 0) > 0.05
    assert [near.value > 0, far.value] == [True, pytest.approx(19 / 6)]


def test_metrics_that_some_lack() -> None:
    groups = group_experiments(
        [
            experiment("x", "1", 1, loss=1.5),
            experiment("y", "1", 2),
            experiment("z", "2", 1),
            experiment("w", "3", 1, loss=2.0),
        ]
    )
    differences = compare_groups(groups, groups[0], "loss")
    assert [difference and difference.value for difference in differences] == [None, None, 0.5]
    comparison = Comparison(groups, groups[0], ["train.rate"], {"loss": differences}, [])
    rows = [line.split() for line in render(comparison, "text")][1:]
    assert rows[0] == ["1", "x", "+1", "2", "1.50000", "(n", "=", "1)", "baseline"]
    assert rows[1] == ["2", "z", "1", "-", "-", "-"]
    assert list(render(comparison, "csv"))[2] == "2,z,1,,,0,,,,"


def test_what_is_no_finite_number_is_told_and_not_counted() -> None:
    values = {"x": 1.5, "y": math.nan, "z": 2.0, "w": math.inf}
    groups = group_experiments(
        [experiment(name, "1", seed, loss=loss) for seed, (name, loss) in enumerate(values.items())]
    )
    assert groups[0].sample("loss") == (1.5, 2.0)
    comparison = Comparison(groups, groups[0], [], {"loss": compare_groups(groups, groups[0], "loss")}, [])
    assert "loss is no finite number in y, w: not counted there" in list(comparison.notes)
    for form in ("text", "markdown", "csv"):
        assert list(render(comparison, form))


def test_counts_are_not_tested() -> None:
    groups = group_experiments(
        [experiment("x", "1", 1, tokens=10.0, loss=1.0), experiment("y", "2", 1, tokens=30, loss=1.5)]
    )
    assert is_count(groups, "tokens")
    assert not is_count(groups, "loss")
