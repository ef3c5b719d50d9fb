"""Comparisons as pictures: what is drawn of real experiments, reproducible bytes, and what cannot be drawn."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lmcore.errors import ArtifactError, ParameterError
from lmcore.experiments import compare, picture
from lmcore.experiments.compare import compare_experiments
from lmcore.experiments.experiments import Experiment, read_file
from lmcore.experiments.picture import plot_curves, plot_metrics
from lmcore.plots import Series

RATES = ("slow-1", "slow-2", "slow-3", "fast-1", "fast-2")


def drawn(monkeypatch: pytest.MonkeyPatch, root: Path, *names: str, metrics: Sequence[str] = ()) -> dict[str, object]:
    """What plot_metrics hands on to be drawn."""
    found: dict[str, object] = {}

    def draw(panels: dict[str, list[Series]], parameter: str, out: Path, *, logarithmic: bool) -> None:
        found.update(panels=panels, parameter=parameter, logarithmic=logarithmic)

    monkeypatch.setattr(picture, "draw_metrics", draw)
    plot_metrics(compare_experiments(names, root, metrics), Path("any.svg"), every_metric=bool(metrics))
    return found


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the experiments of the fixture `experiments`, without DVC, which takes its time."""
    known = {
        f"{kind}-{seed}": Experiment.describe(
            f"{kind}-{seed}",
            "0" * 40,
            "finished",
            {"train.seed": seed, "train.learning_rate": rate},
            {"evaluate.val_loss": round(rate + seed / 100, 2), "evaluate.baselines.xz": 1.5},
        )
        for kind, rate in (("slow", 0.1), ("fast", 0.3))
        for seed in (1, 2, 3)
    }
    monkeypatch.setattr(compare, "find_experiments", lambda names, _: [known[name] for name in names])
    return tmp_path_factory.mktemp("made")


def test_the_metric_over_the_learning_rate(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {0.1: (0.11, 0.12, 0.13), 0.3: (0.31, 0.32)}
    expected = {"panels": {"evaluate.val_loss": [Series("", points)]}, "logarithmic": True}
    assert drawn(monkeypatch, made, *RATES) == {**expected, "parameter": "train.learning_rate"}


def test_each_metric_that_is_asked_for_has_a_panel(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = ("evaluate.baselines.xz", "evaluate.val_loss")
    panels = drawn(monkeypatch, made, *RATES, metrics=metrics)["panels"]
    assert isinstance(panels, dict)
    assert tuple(panels) == metrics


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_same_experiments_give_the_same_bytes(made: Path, tmp_path: Path, ending: str) -> None:
    for name in ("first", "second"):
        out = tmp_path / name / f"rates.{ending}"
        plot_metrics(compare_experiments(RATES, made), out, every_metric=False)
    contents = [(tmp_path / name / f"rates.{ending}").read_bytes() for name in ("first", "second")]
    assert contents[0] == contents[1]
    assert len(contents[0]) < 60_000
    if ending == "svg":
        ElementTree.fromstring(contents[0])


def test_what_cannot_be_drawn(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alike = compare_experiments(["slow-1", "slow-2"], made)
    with pytest.raises(ParameterError, match="--plot: no parameter differs between the experiments"):
        plot_metrics(alike, tmp_path / "any.svg", every_metric=False)
    with pytest.raises(ParameterError, match=r"--plot any.pdf: the name must end with .svg or .png"):
        plot_metrics(alike, Path("any.pdf"), every_metric=False)
    different = compare_experiments(RATES, made)
    monkeypatch.setattr(type(different.groups[0]), "param", lambda group, name: f"{name} of {group.name}")
    crowded = type(different)(different.groups, different.baseline, ["a", "b", "c"], different.metrics, [])
    with pytest.raises(ParameterError, match=r"--plot: 3 parameters differ \(a, b, c\): name some that differ in two"):
        plot_metrics(crowded, tmp_path / "any.svg", every_metric=False)
    with pytest.raises(ArtifactError, match=r"slow-1: git has no reports/plots/training.csv of it"):
        plot_curves(different, made, tmp_path / "any.svg")
    assert not list(tmp_path.iterdir())


def test_two_parameters_are_an_axis_and_lines(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the values of a made-up comparison: three widths of two kinds."""
    comparison = compare_experiments(["slow-1", "fast-1"], made)
    slow, fast = comparison.groups
    kinds = {id(slow): ("8", "gelu"), id(fast): ("16", "gelu")}
    third = type(slow)(slow.members, ())
    kinds[id(third)] = ("32", "relu2")
    monkeypatch.setattr(
        type(slow), "param", lambda group, name: kinds[id(group)][("model.d_model", "model.mlp").index(name)]
    )
    made_up = type(comparison)([third, fast, slow], slow, ["model.mlp", "model.d_model"], comparison.metrics, [])
    found: list[object] = []
    monkeypatch.setattr(picture, "draw_metrics", lambda *arguments, **_: found.extend(arguments))
    plot_metrics(made_up, Path("any.svg"), every_metric=False)
    lines = [Series("mlp gelu", {8.0: (0.11,), 16.0: (0.31,)}), Series("mlp relu2", {32.0: (0.11,)})]
    assert found[:2] == [{"evaluate.val_loss": lines}, "model.d_model"]


@pytest.mark.slow
@pytest.mark.xdist_group("experiments")  # these share DVC's own experiments
def test_a_file_that_git_keeps_is_the_experiments_own(experiments: Path) -> None:
    comparison = compare_experiments(["slow-1", "fast-2"], experiments)
    losses = [
        read_file(member.name, member.code, "reports/metrics/evaluate.json", experiments)
        for group in comparison.groups
        for member in group.members
    ]
    assert [re.findall(r"0\.\d+", text) for text in losses] == [["0.11"], ["0.32"]]
    assert "0.11" in read_file("workspace", "workspace", "reports/metrics/evaluate.json", experiments)
    assert "0.11" in read_file("HEAD", "HEAD", "reports/metrics/evaluate.json", experiments)


@pytest.mark.slow
@pytest.mark.xdist_group("experiments")  # these share DVC's own experiments
def test_the_command_writes_the_picture_beside_the_table(experiments: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lmcore", "compare", *RATES, "--plot", str(tmp_path / "rates.svg")]
    result = subprocess.run(command, cwd=experiments, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("train.learning_rate")
    assert "train.learning_rate" in (tmp_path / "rates.svg").read_text()
