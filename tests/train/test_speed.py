"""The table of speeds: made from the latest complete runs, bounded, in the project whatever the current folder."""

import json
import os
from pathlib import Path

import pytest

from lmcore.train.speed import LATEST_RUNS, ROWS_PER_RUN, SPEED_FILE, write_speed


def make_run(project: Path, key: str, *, steps: int = 3, completed_at: int | None = None) -> None:
    folder = project / "runs" / key
    folder.mkdir(parents=True)
    records = [
        {"step": step, "machine": {"time": 1, "tokens_per_second": 1000.4 * (step > 1)}} for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if completed_at is not None:
        (folder / "summary.json").write_text("{}")
        os.utime(folder / "summary.json", (completed_at, completed_at))


def rows(project: Path) -> list[list[str]]:
    return [line.split(",") for line in (project / SPEED_FILE).read_text().splitlines()]


def test_the_latest_runs_and_this_one_last(tmp_path: Path) -> None:
    for age in range(LATEST_RUNS + 2):
        make_run(tmp_path, f"complete-{age}", completed_at=1000 - age)
    make_run(tmp_path, "incomplete")
    make_run(tmp_path, "now.previous", completed_at=2000)
    make_run(tmp_path, "now")
    write_speed(tmp_path / "runs" / "now")
    header, *found = rows(tmp_path)
    assert header == ["step", "tokens_per_second", "run"]
    expected = [*(f"complete-{age}" for age in reversed(range(LATEST_RUNS - 1))), "now"]
    # The first step has no speed.
    assert found == [[step, "1000", key] for key in expected for step in ("2", "3")]


def test_a_long_run_is_thinned_and_keeps_its_end(tmp_path: Path) -> None:
    make_run(tmp_path, "long", steps=10 * ROWS_PER_RUN)
    write_speed(tmp_path / "runs" / "long")
    _, *found = rows(tmp_path)
    assert ROWS_PER_RUN / 2 < len(found) <= ROWS_PER_RUN
    assert found[-1][0] == str(10 * ROWS_PER_RUN)


def test_a_damaged_run_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "damaged", completed_at=1)
    (tmp_path / "runs" / "damaged" / "metrics.jsonl").write_text('{"step": 1, "mach')
    make_run(tmp_path, "now")
    write_speed(tmp_path / "runs" / "now")
    assert {row[2] for row in rows(tmp_path)[1:]} == {"now"}
    complaint = capsys.readouterr().err
    assert "damaged/metrics.jsonl is damaged" in complaint
    assert f"{SPEED_FILE} lacks this run" in complaint
