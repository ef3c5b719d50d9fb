"""The training curve: the same bytes, a small file, and a picture whatever the run's length."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lmcore.plots import Series, average, draw_corpus, draw_curves, draw_metrics, draw_training, select


def training_rows(count: int, evaluate_every: int) -> list[dict[str, Any]]:
    """Rows of a run whose losses fall like 1/step."""
    return [
        {
            "step": step,
            "tokens": 8192 * step,
            "train_loss": 2 + 6 / step,
            "val_loss": 2.1 + 6 / step if step % evaluate_every == 0 else None,
            "learning_rate": 1e-3 * (1 - step / (count + 1)),
            "gradient_norm": 1.0,
        }
        for step in range(1, count + 1)
    ]


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    rows = training_rows(50, 10)
    draw_training(rows, tmp_path / "first.svg")
    draw_training(rows, tmp_path / "second.svg")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    draw_training(rows[:-1], tmp_path / "shorter.svg")
    assert (tmp_path / "first.svg").read_bytes() != (tmp_path / "shorter.svg").read_bytes()


@pytest.mark.parametrize(("count", "evaluate_every"), [(0, 1), (1, 1), (1, 2), (3, 2), (30_000, 7)])
def test_any_run_is_a_small_valid_picture(tmp_path: Path, count: int, evaluate_every: int) -> None:
    picture = tmp_path / "plots" / "training.svg"
    draw_training(training_rows(count, evaluate_every), picture)
    assert ElementTree.fromstring(picture.read_text()).tag == "{http://www.w3.org/2000/svg}svg"
    assert picture.stat().st_size < 60_000


@pytest.mark.parametrize("absent", [None, "", float("nan")])
def test_absent_values_are_left_out(tmp_path: Path, absent: object) -> None:
    rows = training_rows(20, 5)
    draw_training(rows, tmp_path / "expected.svg")
    draw_training([{**row, "val_loss": row["val_loss"] or absent} for row in rows], tmp_path / "found.svg")
    assert (tmp_path / "expected.svg").read_bytes() == (tmp_path / "found.svg").read_bytes()


def test_long_lines_are_thinned() -> None:
    assert average([1, 2, 3, 4], [8, 6, 4, 2], 2) == ([1.5, 3.5], [7, 3])
    assert select([1, 2, 3, 4], [8, 6, 4, 2], 2) == ([2, 4], [6, 2])
    assert average([1, 2], [8, 6], 2) == select([1, 2], [8, 6], 2) == ([1, 2], [8, 6])
    assert average([], [], 2) == select([], [], 2) == ([], [])


@pytest.mark.parametrize("lengths", [{1: 1}, {64: 10, 1 << 20: 3}, {1 << power: power for power in range(30)}])
def test_a_corpus_is_a_picture_and_the_same_bytes(tmp_path: Path, lengths: dict[int, int]) -> None:
    outcomes = {"kept": sum(lengths.values()), "duplicate": 0, "too_short": 7}
    draw_corpus(lengths, outcomes, tmp_path / "first.svg")
    draw_corpus(lengths, outcomes, tmp_path / "second.svg")
    content = (tmp_path / "first.svg").read_bytes()
    assert content == (tmp_path / "second.svg").read_bytes()
    ElementTree.fromstring(content)
    assert len(content) < 100_000


@pytest.mark.parametrize("places", [[0.0003, 0.001, 0.003], ["relu2", "gelu"], [float(width) for width in range(20)]])
def test_metrics_over_a_parameter_are_a_picture(tmp_path: Path, places: list[float | str]) -> None:
    lines = [Series(f"line {line}", dict.fromkeys(places, (1.0, 1.1 + line))) for line in range(3)]
    alone = [Series("", {place: () if place == places[0] else (1.0,) for place in places})]
    draw_metrics({"loss": lines, "other": alone}, "train.any", tmp_path / "any.svg", logarithmic=0.001 in places)
    text = (tmp_path / "any.svg").read_text()
    ElementTree.fromstring(text)
    assert all(f"<!-- {place} -->" in text for place in places if len(places) < 10)
    assert "<!-- line 2 -->" in text
    assert "<!-- train.any -->" in text


def test_curves_of_one_label_are_named_once(tmp_path: Path) -> None:
    curve = {float(tokens): [8.0 - tokens / 1000] for tokens in range(0, 5000, 10)}
    draw_curves([Series("small", curve), Series("small", curve), Series("large", curve)], tmp_path / "any.svg")
    text = (tmp_path / "any.svg").read_text()
    assert (text.count("<!-- small -->"), text.count("<!-- large -->")) == (1, 1)
    assert len(text) < 60_000
